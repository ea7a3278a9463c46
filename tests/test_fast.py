"""The fast forms behind the lesson's: the same values and the same gradients, only sooner."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from vcutils.dataset import Batch
from vcutils.features import frame_features
from vcutils.model import caption_loss
from vcutils.runtime.backbones import load_backbone
from vcutils.runtime.fast import SharedLinear, TrainingModel, fast_loss, sampled_inputs
from vcutils.vocab import END, PAD, START

SWITCHES = [
    {},
    {"attention": "uniform"},
    {"attention": "matched"},
    {"encoder": "none"},
    {"attention": "uniform", "encoder": "none"},
    {"max_frames": 2},
    {"frame_order": "shuffled"},
]


@pytest.fixture
def make_batch(random_clips):
    """Function: four clips of 6, 2, 4 and 1 frames with K captions of 0 to 7 words; where K > 1 one row is padding."""

    def make(count):
        features, mask = random_clips([6, 2, 4, 1])
        generator = np.random.default_rng(count)
        captions = torch.full((4, count, 9), PAD)
        for b in range(4):
            for k in range(count):
                words = generator.integers(4, 12, generator.integers(1, 8)).tolist()
                captions[b, k, : len(words) + 2] = torch.tensor([START, *words, END])
        if count > 1:
            captions[1, -1] = PAD
        return Batch(list("abcd"), features, mask, captions)

    return make


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def given(batch):
    """What the fast form reads: <end> is a target and never an input."""
    return batch.inputs.masked_fill(batch.targets == PAD, PAD)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_and_fast_teacher_forcing_are_equal(small_model, make_batch, switches, count, smoothing):
    model, batch = small_model(sharpness=2, **switches), make_batch(count)
    logits, weights = model(batch.features, batch.frame_mask, batch.inputs)
    plain = caption_loss(logits, batch.targets, smoothing)
    fast = fast_loss(TrainingModel(model), batch, PAD, smoothing)
    assert (plain - fast).abs() < 1e-6
    expected = gradients(model, plain)
    for name, gradient in gradients(model, fast).items():
        assert (gradient - expected[name]).abs().max() < 1e-5, name
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())

    real = batch.targets != PAD
    packed, spread, _ = TrainingModel(model)(batch.features, batch.frame_mask, given(batch))
    assert torch.allclose(packed, logits[real], atol=1e-5), "the real words' logits, in row order"
    assert torch.allclose(spread[real], weights[real], atol=1e-6) and (spread[~real] == 0).all()


def test_both_are_equal_in_training_when_nothing_is_dropped(small_model, make_batch):
    model, batch = small_model(sharpness=2, dropout=0.0).train(), make_batch(3)
    plain = caption_loss(model(batch.features, batch.frame_mask, batch.inputs)[0], batch.targets)
    assert (plain - fast_loss(TrainingModel(model), batch, PAD)).abs() < 1e-6


@pytest.mark.parametrize("attention", ["additive", "uniform"])
def test_nothing_is_computed_for_padding(small_model, make_batch, monkeypatch, attention):
    model, batch, rows = small_model(attention=attention), make_batch(3), []
    real = TrainingModel._attend

    def attend(self, query, h, *others):
        rows.append(len(h))
        return real(self, query, h, *others)

    monkeypatch.setattr(TrainingModel, "_attend", attend)
    fast_loss(TrainingModel(model), batch, PAD)
    lengths = (batch.targets != PAD).sum(dim=2).flatten().tolist()
    assert rows == [sum(length > t for length in lengths) for t in range(max(lengths))]
    assert sum(rows) == int((batch.targets != PAD).sum()) < batch.targets.numel()


def test_end_is_learned_and_never_read(make_batch):
    batch, seen = make_batch(3), []

    class Spy(nn.Module):
        def forward(self, features, frame_mask, inputs, lengths):
            seen.append(inputs)
            return 30.0 * functional.one_hot(batch.targets[inputs != PAD], 12).float(), None, None

    assert fast_loss(Spy(), batch, PAD) < 1e-6
    assert (seen[0] != END).all()
    assert int((seen[0] != PAD).sum()) == int((batch.targets != PAD).sum())
    assert (batch.targets == END).sum() == 11, "one <end> per caption is a target"


def test_replaced_inputs_leave_the_targets(small_model, make_batch):
    network, batch = TrainingModel(small_model(sharpness=2)), make_batch(3)
    replaced = batch.inputs.clone()
    replaced[:, :, 1:] = torch.where(batch.targets[:, :, 1:] != PAD, 4, replaced[:, :, 1:])
    assert fast_loss(network, batch, PAD, inputs=batch.inputs) == fast_loss(network, batch, PAD)
    assert fast_loss(network, batch, PAD, inputs=replaced) != fast_loss(network, batch, PAD)


def test_captions_weights_multiply_the_loss_of_their_words(small_model, make_batch):
    model, batch = small_model(sharpness=2), make_batch(3)
    weights = torch.tensor([[1.0, -0.5, 2.0], [0.5, 0.0, 3.0], [-1.0, 1.0, 1.0], [0.25, 0.25, -2.0]])
    real = batch.targets != PAD
    logits, _ = model(batch.features, batch.frame_mask, batch.inputs)
    each = functional.cross_entropy(logits[real] / 0.5, batch.targets[real], reduction="none", label_smoothing=0.1)
    expected = (each * weights[:, :, None].expand_as(real)[real]).mean()
    weighted = fast_loss(TrainingModel(model), batch, PAD, 0.1, weights=weights, temperature=0.5)
    assert torch.allclose(weighted, expected, atol=1e-6)


def test_matching_loss_asks_which_clip_the_words_so_far_are_about(small_model, make_batch):
    model, batch = small_model(attention="matched", sharpness=2), make_batch(2)
    memory, real, losses = model.encode(batch.features, batch.frame_mask), batch.targets != PAD, []
    for b in range(4):
        for words, exists in zip(batch.inputs[b], real[b], strict=True):
            for length in range(1, int(exists.sum()) + 1):
                said = model.decoder.attention.said(words[:length]).sum(dim=0)  # (A,)
                clips = [(memory.keys[c][memory.mask[c]] @ said).exp().mean() for c in range(4)]
                losses.append(-torch.log(clips[b] / sum(clips)))
    plain = fast_loss(TrainingModel(model), batch, PAD)
    taught = fast_loss(TrainingModel(model), batch, PAD, matching=2.0)
    assert float(taught - plain) == pytest.approx(2 * float(torch.stack(losses).mean()), abs=1e-5)


def test_sampled_inputs_take_the_share_that_is_asked_for(small_model, make_batch):
    network, batch = TrainingModel(small_model(sharpness=3)), make_batch(3)
    assert torch.equal(sampled_inputs(network, batch, PAD, START, 0.0), batch.inputs)
    own = sampled_inputs(network, batch, PAD, START, 1.0)
    assert (own[:, :, 0] == batch.inputs[:, :, 0]).all() and not torch.equal(own, batch.inputs)
    assert torch.equal(own == PAD, batch.inputs.masked_fill(batch.inputs == END, END) == PAD)


def looped(linear, start):
    """A loop in which each step reads the one before; its loss."""
    state = start
    for _ in range(4):
        state = torch.tanh(linear(state))
    return (state.float() ** 2).sum()


@pytest.mark.parametrize("autocast", [False, True])
def test_one_gradient_over_all_steps_is_the_sum_of_each_steps_own(autocast):
    torch.manual_seed(0)
    layer, start = nn.Linear(6, 6, bias=False), torch.randn(3, 2, 6)

    def both_gradients(wrap):
        layer.zero_grad()
        x = start.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            looped(wrap(layer), x).backward()
        return x.grad, layer.weight.grad.clone()

    tolerance = 3e-2 if autocast else 1e-6
    for ours, plain in zip(both_gradients(SharedLinear), both_gradients(lambda same: same), strict=True):
        assert torch.allclose(ours, plain, atol=tolerance)


def test_gradient_of_a_gradient_is_refused_not_wrong():
    """A weight that collects its gradient outside the graph would silently give another second derivative."""
    layer, x = nn.Linear(6, 6, bias=False), torch.randn(3, 6, requires_grad=True)
    loss = looped(SharedLinear(layer), x)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first**2).sum().backward()


def test_weight_is_cast_once_and_not_at_every_step():
    layer, x = nn.Linear(6, 6, bias=False), torch.randn(3, 6, requires_grad=True)
    held = []

    def pack(tensor):
        held.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        shared = SharedLinear(layer)
        assert shared.weight.dtype == torch.bfloat16
        loss = looped(shared, x)
    weights = [t for t in held if t.shape == (6, 6) and t.dtype == torch.bfloat16]
    assert len(weights) == 4 and len({t.untyped_storage().data_ptr() for t in weights}) == 1
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32


def test_without_gradients_nothing_is_collected():
    layer, x = nn.Linear(6, 6, bias=False), torch.randn(3, 6)
    with torch.no_grad():
        shared = SharedLinear(layer)
        assert torch.equal(shared(x), x @ layer.weight.T) and shared.steps == []
    frozen = copy.deepcopy(layer).requires_grad_(False)
    assert torch.equal(SharedLinear(frozen)(x), x @ layer.weight.T)


def test_one_frame_and_many_resized_ones_have_the_same_features():
    backbone = load_backbone("efficientnet_lite0", torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (5, 120, 160, 3)).astype(np.uint8)
    together = backbone(np.stack([backbone.resize(frame) for frame in frames]))
    for frame, row in zip(frames, together, strict=True):
        assert torch.allclose(frame_features(backbone, frame), row, atol=1e-4)
