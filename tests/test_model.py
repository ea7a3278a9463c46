"""The model: padding takes no part, attention is a distribution over real frames, the loss looks ahead."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional

from vcutils.config import DecodeConfig, ModelConfig
from vcutils.dataset import Batch
from vcutils.decode import generate
from vcutils.model import CaptionModel, RepeatedLinear, caption_loss
from vcutils.vocab import END, PAD, SPECIALS, START, Vocabulary

SWITCHES = [{}, {"attention": "uniform"}, {"encoder": "none"}, {"frame_order": "shuffled"}]


@pytest.fixture
def batch(random_clips):
    """Three clips of 6, 2 and 4 frames with two captions each, the last row of padding alone."""
    features, mask = random_clips([6, 2, 4])
    rows = [[4, 5, 8], [6, 8, 10, 6], [7], [4, 7, 9, 11], [5, 5], []]
    captions = torch.full((3, 2, 6), PAD)
    for n, words in enumerate(rows):
        if words:
            captions[n // 2, n % 2, : len(words) + 2] = torch.tensor([START, *words, END])
    return Batch(["a", "b", "c"], features, mask, captions)


def read(batch):
    """What the decoder is given: every word but the last of each caption."""
    return batch.inputs.masked_fill(batch.targets == PAD, PAD)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_shapes(small_model, batch, switches):
    model = small_model(**switches)
    inputs = read(batch)
    logits, weights = model(batch.features, batch.frame_mask, inputs)
    assert logits.shape == (int((inputs != PAD).sum()), 12)
    assert weights.shape == (3, 2, 5, 6)
    memory = model.encode(batch.features, batch.frame_mask)
    assert memory.values.shape == (3, 6, 12) and memory.keys.shape == (3, 6, 7)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_attention_sums_to_one_over_real_frames_and_is_zero_on_padding(small_model, batch, switches):
    inputs = read(batch)
    _, weights = small_model(sharpness=3, **switches)(batch.features, batch.frame_mask, inputs)
    assert torch.allclose(weights.sum(-1), (inputs != PAD).float(), atol=1e-6)
    real_frames = batch.frame_mask[:, None, None].expand_as(weights)
    assert not real_frames.all() and (weights[~real_frames] == 0).all()
    assert (weights[inputs != PAD][real_frames[inputs != PAD]] > 0).all()


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_nothing_is_computed_for_padding(small_model, batch, switches):
    model, states = small_model(**switches), []
    model.decoder.attention.register_forward_hook(lambda _, arguments, __: states.append(arguments[0].shape))
    caption_loss(model, batch)
    assert [rows for rows, _ in states] == [5, 5, 4, 3, 2], "captions of 4, 5, 2, 5 and 3 words, <end> included"


def test_attention_depends_on_the_frames_and_on_the_word(small_model, batch):
    _, weights = small_model(sharpness=3)(batch.features, batch.frame_mask, read(batch))
    assert weights[0, 0, 0].std() > 1e-3, "all frames alike"
    assert not torch.allclose(weights[0, 0, 0], weights[0, 0, 2], atol=1e-4), "the same frames for every word"


def test_uniform_attention_gives_every_frame_the_same(small_model, batch):
    inputs = read(batch)
    _, weights = small_model(attention="uniform")(batch.features, batch.frame_mask, inputs)
    for b, count in enumerate((6, 2, 4)):
        assert torch.allclose(weights[b][inputs[b] != PAD][:, :count], torch.tensor(1 / count))


@pytest.mark.parametrize("switches", SWITCHES[:3], ids=str)
def test_a_clip_is_told_alone_as_among_others(small_model, batch, switches):
    """Neither the padding nor the other clips of a batch change a clip's result."""
    model = small_model(sharpness=2, **switches)
    inputs = read(batch)
    logits, weights = model(batch.features, batch.frame_mask, inputs)
    starts = [0, *(inputs != PAD).flatten(1).sum(1).cumsum(0).tolist()]
    for b, count in enumerate((6, 2, 4)):
        alone, alone_weights = model(
            batch.features[b : b + 1, :count], batch.frame_mask[b : b + 1, :count], inputs[b : b + 1]
        )
        assert torch.allclose(logits[starts[b] : starts[b + 1]], alone, atol=1e-5)
        assert torch.allclose(weights[b : b + 1, :, :, :count], alone_weights, atol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES[:3], ids=str)
def test_what_stands_in_the_padding_does_not_matter(small_model, batch, switches):
    model = small_model(sharpness=2, **switches)
    before = caption_loss(model, batch)
    filled = batch.features.masked_fill(~batch.frame_mask[:, :, None], 1e4)
    wider = functional.pad(filled, (0, 0, 0, 3), value=-7.0)
    mask = functional.pad(batch.frame_mask, (0, 3), value=False)
    captions = functional.pad(batch.captions, (0, 4), value=PAD)
    assert torch.allclose(caption_loss(model, Batch(batch.ids, wider, mask, captions)), before, atol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_no_gradient_reaches_padding(small_model, batch, switches):
    model = small_model(**switches)
    batch.features.requires_grad_()
    caption_loss(model, batch).backward()
    reached = batch.features.grad.abs().sum(-1) > 0
    assert torch.equal(reached, batch.frame_mask), "every real frame is learned from, no padded one"
    assert (model.decoder.embed.weight.grad[PAD] == 0).all()
    assert (model.decoder.embed.weight.grad[START] != 0).any()


def test_loss_is_the_mean_over_real_words_by_hand(small_model, batch):
    model = small_model(sharpness=2)
    losses = []
    for b in range(3):
        for k in range(2):
            row = [w for w in batch.captions[b, k].tolist() if w != PAD]
            if not row:
                continue
            one = torch.tensor(row[:-1])[None, None]
            logits, _ = model(batch.features[b : b + 1], batch.frame_mask[b : b + 1], one)
            losses += [-logits[t].log_softmax(-1)[row[t + 1]] for t in range(len(row) - 1)]
    assert torch.allclose(caption_loss(model, batch), torch.stack(losses).mean(), atol=1e-5)


class Parrot(nn.Module):
    """Says, with certainty, the word at `shift` from the one that it reads."""

    def __init__(self, batch, shift):
        super().__init__()
        self.batch, self.shift = batch, shift

    def forward(self, features, frame_mask, inputs):
        said = self.batch.captions[:, :, self.shift : self.shift + inputs.shape[2]]
        return 30.0 * functional.one_hot(said[inputs != PAD], 12).float(), None


def test_copying_the_input_is_no_solution(batch):
    """The original notebook compared the output at t with the input at t: a model that copied had no loss."""
    batch.captions[2, 0, 2] = 6  # no word twice in a row, else copying is right once
    assert caption_loss(Parrot(batch, 0), batch) > 29
    assert caption_loss(Parrot(batch, 1), batch) < 1e-6


def test_end_is_learned_and_never_read(batch):
    seen = []

    class Spy(Parrot):
        def forward(self, features, frame_mask, inputs):
            seen.append(inputs)
            return super().forward(features, frame_mask, inputs)

    caption_loss(Spy(batch, 1), batch)
    assert (seen[0] != END).all()
    assert int((seen[0] != PAD).sum()) == int((batch.targets != PAD).sum())
    assert (batch.targets == END).sum() == 5, "one <end> per caption is a target"


def test_replaced_inputs_leave_the_targets(small_model, batch):
    model = small_model(sharpness=2)
    replaced = batch.inputs.clone()
    replaced[:, :, 1:] = torch.where(batch.targets[:, :, 1:] != PAD, 4, replaced[:, :, 1:])
    assert caption_loss(model, batch, inputs=batch.inputs) == caption_loss(model, batch)
    assert caption_loss(model, batch, inputs=replaced) != caption_loss(model, batch)


def test_label_smoothing_punishes_certainty(batch):
    assert caption_loss(Parrot(batch, 1), batch, label_smoothing=0.1) > 1


def test_captions_of_a_clip_at_once_equal_one_by_one(small_model, batch):
    model = small_model(sharpness=2)
    inputs = read(batch)
    together, weights = model(batch.features, batch.frame_mask, inputs)
    flat = torch.split(together, (inputs != PAD).sum(-1).flatten().tolist())
    for k in range(2):
        single, single_weights = model(batch.features, batch.frame_mask, inputs[:, k : k + 1])
        assert torch.allclose(torch.cat([flat[2 * b + k] for b in range(3)]), single, atol=1e-5)
        assert torch.allclose(weights[:, k : k + 1], single_weights, atol=1e-6)


def test_future_words_are_not_seen(small_model, random_clips):
    model = small_model(sharpness=3)
    features, mask = random_clips([4])
    one, _ = model(features, mask, torch.tensor([[[START, 4, 5, 6]]]))
    other, _ = model(features, mask, torch.tensor([[[START, 4, 9, 10]]]))
    assert torch.equal(one[:2], other[:2]) and not torch.allclose(one[2:], other[2:])


def test_bilstm_sees_the_order_and_both_directions(small_model, random_clips):
    features, mask = random_clips([5])
    changed = features.clone()
    changed[0, 2] += 1
    bilstm, none = small_model(), small_model(encoder="none")
    moved = (bilstm.encode(changed, mask).values - bilstm.encode(features, mask).values).abs().sum(-1)[0] > 1e-6
    assert moved.all(), "a frame must be felt before and after it"
    moved = (none.encode(changed, mask).values - none.encode(features, mask).values).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, False, False]


def test_shuffled_order_shows_weights_at_the_frames_true_places(small_model, random_clips):
    """Without a BiLSTM the order cannot matter: shuffled and put back, everything must be as it was."""
    features, mask = random_clips([7, 3, 5])
    inputs = torch.tensor([[[START, 4, 5]]] * 3)
    kept = small_model(encoder="none", sharpness=3)(features, mask, inputs)
    for seed in range(5):
        model = small_model(encoder="none", frame_order="shuffled", sharpness=3)
        torch.manual_seed(seed)
        shuffled = model(features, mask, inputs)
        assert torch.allclose(kept[1], shuffled[1], atol=1e-6) and torch.allclose(kept[0], shuffled[0], atol=1e-5)


def test_shuffled_order_really_shuffles_real_frames(small_model, random_clips):
    features, mask = random_clips([7, 3])
    model = small_model(frame_order="shuffled")  # without dropout: what varies is the order
    measured = [model.encode(features, mask).values for _ in range(2)]
    assert torch.equal(*measured), "one order for measuring: two evaluations must agree"
    assert not torch.allclose(measured[0], small_model().encode(features, mask).values, atol=1e-5)
    model.train()
    runs = [model.encode(features, mask).values for _ in range(4)]
    assert any(not torch.allclose(runs[0], other, atol=1e-5) for other in runs[1:])
    assert all((values[~mask] == 0).all() for values in runs)


def test_dropout_works_in_training_only(random_clips):
    torch.manual_seed(0)
    model = CaptionModel(ModelConfig(8, 6, 10, 7, dropout=0.5), 12, 5)
    features, mask = random_clips([4])
    inputs = torch.tensor([[[START, 4]]])
    assert not torch.equal(model(features, mask, inputs)[0], model(features, mask, inputs)[0])
    model.eval()
    assert torch.equal(model(features, mask, inputs)[0], model(features, mask, inputs)[0])


def test_wrong_shapes_are_refused(small_model, random_clips):
    model = small_model()
    features, mask = random_clips([4, 2])
    with pytest.raises(ValueError, match=r"features must be \(B, T, 5\), are \(2, 4, 6\)"):
        model.encode(torch.zeros(2, 4, 6), mask)
    with pytest.raises(ValueError, match=r"features must be"):
        model.encode(features[0], mask[0])
    with pytest.raises(ValueError, match=r"frame_mask must be \(2, 4\), is \(2, 3\)"):
        model.encode(features, mask[:, :3])


def test_clip_without_frames_is_refused(small_model, random_clips):
    features, mask = random_clips([4, 2])
    mask[1] = False
    with pytest.raises(ValueError, match="at least one"):
        small_model().encode(features, mask)


@pytest.mark.parametrize("attention", ["additive", "uniform"])
def test_one_batch_is_learned_by_heart_and_said_again(small_model, random_clips, vocabulary, attention):
    features, mask = random_clips([6, 2, 4, 5])
    captions = torch.full((4, 1, 7), PAD)
    for b, text in enumerate(("a cat sits", "a dog runs and sits", "man", "a man and a dog")):
        ids = vocabulary.encode(text)
        captions[b, 0, : len(ids)] = torch.tensor(ids)
    batch = Batch(["a", "b", "c", "d"], features, mask, captions)
    model = small_model(attention=attention).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = caption_loss(model, batch)
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    found = generate(model, vocabulary, features, mask, DecodeConfig())
    assert [h[0].caption for h in found] == ["a cat sits", "a dog runs and sits", "man", "a man and a dog"]
    assert model.training, "generating must give the model back as it was"


@pytest.mark.parametrize("autocast", [False, True])
def test_one_gradient_over_all_steps_is_the_sum_of_each_steps_own(autocast):
    """RepeatedLinear against plain use of the same layer, in a loop in which each step reads the one before."""
    torch.manual_seed(0)
    layer, start = RepeatedLinear(6, 6), torch.randn(3, 2, 6)

    def gradients(context):
        layer.zero_grad()
        x = start.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with context:
                state = x
                for _ in range(4):
                    state = torch.tanh(layer(state))
            (state.float() ** 2).sum().backward()
        return x.grad, layer.weight.grad.clone()

    tolerance = 3e-2 if autocast else 1e-6
    for ours, plain in zip(gradients(layer.one_gradient()), gradients(nullcontext()), strict=True):
        assert torch.allclose(ours, plain, atol=tolerance)
    assert layer._shared is None


@pytest.mark.parametrize("encoder", ["bilstm", "none"])
def test_few_frames_are_spread_evenly_and_the_others_weigh_nothing(small_model, batch, encoder):
    model = small_model(sharpness=3, encoder=encoder, max_frames=2)
    logits, weights = model(batch.features, batch.frame_mask, read(batch))
    kept = [{0, 3}, {0, 1}, {0, 2}]  # of 6, 2 and 4 frames
    assert [set(weights[b, 0, 0].nonzero().flatten().tolist()) for b in range(3)] == kept
    few = torch.stack([batch.features[b, sorted(kept[b])] for b in range(3)])
    plain = small_model(sharpness=3, encoder=encoder)
    expected, _ = plain(few, torch.ones(3, 2, dtype=torch.bool), read(batch))
    assert torch.allclose(logits, expected, atol=1e-6)
    found = generate(
        model, Vocabulary((*SPECIALS, *"abcdefgh"), (0,) * 12), batch.features, batch.frame_mask, DecodeConfig()
    )
    assert [h[0].attention.shape[1] for h in found] == [6, 2, 4]
