"""What the exercises of notebook 3 must compute, on a small model and made clips."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vcutils.config import PROFILES, Config, ModelConfig
from vcutils.course.exercises import Differs, call, kind_of, same, unpack
from vcutils.course.expect_batches import made_clips
from vcutils.dataset import Batch, collate
from vcutils.model import CaptionModel, Memory, caption_loss
from vcutils.vocab import PAD

DIM, WORDS = 6, 12


def small_model(seed: int = 0, sharpness: float = 3.0, dropout: float = 0.0) -> CaptionModel:
    """A model of 12 words and D = 6; `sharpness` makes it decided, so that wrong numbers lie far from right ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CaptionModel(ModelConfig(8, 6, 10, 7, dropout=dropout), WORDS, DIM).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(sharpness)
    return model


def made_batch(lengths: tuple[int, ...] = (5, 3, 2), captions: tuple[int, ...] = (2, 2, 2)) -> Batch:
    """A padded batch of made clips."""
    return collate(made_clips(lengths, captions, DIM))


def encoded() -> tuple[CaptionModel, Memory, Tensor, Tensor]:
    """A small model, three encoded clips, and the decoder's states (B, K, H) in front of two captions of each."""
    model, batch = small_model(), made_batch()
    with torch.no_grad():
        memory = model.encode(batch.features, batch.frame_mask)
        h, c = model.decoder.start(memory, 2)
    noise = torch.randn(2, *h.shape)
    return model, memory, h + 0.3 * noise[0], c + 0.3 * noise[1]


@torch.no_grad()
def expect_additive_attention(function: Callable) -> None:
    """3.1: contexts and weights of B · K states at once."""
    model, memory, h, _ = encoded()
    layers = copy.deepcopy(model.decoder.attention).double()
    h, m, mask = h.double(), memory.values.double(), memory.mask
    # `weigh` ends in float32, which is coarser than the 1e-6 asked for: here in float64.
    scores = layers.score(torch.tanh(layers.query(h)[:, :, None] + layers.keys(m)[:, None])).squeeze(-1)
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(dim=-1)
    matrices = layers.query.weight, layers.keys.weight, layers.keys.bias, layers.score.weight[0]
    arguments = (h, m, mask, *(matrix.detach() for matrix in matrices))
    parts = unpack("additive_attention", call(function, *arguments), ("context", "weights"))
    got = _tensor("weights", parts["weights"], weights)
    if (got.transpose(1, 2)[~mask] != 0).any():
        raise Differs("The weights on padding are not exactly 0. Padding must be left out before the softmax.")
    total = got.sum(dim=-1)
    off = total[(total - 1).abs() > 1e-5]
    if len(off):
        raise Differs(f"A caption's weights must sum to 1 over the frames; the first other sum is {off[0]:.4f}.")
    same("weights", got, weights)
    same("context", parts["context"], weights @ m)


@torch.no_grad()
def expect_decoder_step(function: Callable) -> None:
    """3.2: one word of B · K captions."""
    model, memory, h, c = encoded()
    words = torch.tensor([[1, 5], [6, 2], [11, 4]])
    (new_h, new_c), logits, weights = model.decoder.step(words, (h, c), memory)
    parts = unpack("decoder_step", call(function, model.decoder, words, h, c, memory), ("h", "c", "logits", "weights"))
    for name, expected in (("weights", weights), ("c", new_c), ("h", new_h), ("logits", logits)):
        same(name, parts[name], expected, 1e-5)


@torch.no_grad()
def expect_teacher_forced(function: Callable) -> None:
    """3.3: the mean loss per real word; usual mistakes are told apart by their values."""
    model, batch = small_model(), made_batch()
    logits, _ = model(batch.features, batch.frame_mask, batch.inputs)
    log_p, targets = logits.log_softmax(dim=-1), batch.targets
    nats = -log_p.gather(-1, targets[..., None]).squeeze(-1)  # (B, K, L)
    real = targets != PAD
    wrong = {
        float(nats.mean()): "That is the value when padding counts. Leave out the targets that are <pad>.",
        float(nats.sum() / real.sum()): "Padding adds to your nats. Leave out the targets that are <pad>.",
        float((nats * real).mean()): "Padding is 0 in your sum, but still counts in the number of words.",
        float((nats * real).sum()): "That is the sum over all words. The mean per real word is asked for.",
        float((nats * real).sum(-1).div(real.sum(-1)).mean()): "That is the mean of the captions' means; long captions "
        "have more words, so add up all words first.",
        float(caption_loss(logits, batch.inputs)): "The target is the word that has just been read. Shift by one.",
    }
    got = _tensor("the loss", call(function, model, batch), nats[0, 0, 0])
    for value, message in wrong.items():
        if abs(float(got) - value) < 1e-4:
            raise Differs(f"Your loss is {float(got):.4f}. {message}")
    same("teacher_forced(model, batch)", float(got), float(caption_loss(logits, targets)), 1e-4)


def expect_train(function: Callable) -> None:
    """3.4: the loop's gradients step by step, on a model without dropout."""
    epochs, clip_norm, batches = 2, 0.5, [made_batch(lengths) for lengths in ((5, 3, 2), (4, 4, 1), (2, 6, 3))]
    reference, expected, losses = small_model(1), [], []
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in batches:
                optimizer.zero_grad()
                loss = caption_loss(reference(*batch[1:3], batch.inputs)[0], batch.targets)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(reference.parameters(), clip_norm)
                expected.append(_gradient(reference))
                losses.append(float(loss.detach()))
                optimizer.step()
        model, seen, modes = small_model(1), [], []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: seen.append(_gradient(model)))
        optimizer.register_step_pre_hook(lambda *_: modes.append(model.training))
        got = call(function, model, batches, optimizer, epochs, clip_norm, keep=True)
    if not seen:
        raise Differs("The weights never change: `optimizer.step()` was not called.")
    if not modes[0]:
        raise Differs("The model is in eval mode while it trains, so its dropout is off. Call `model.train()` first.")
    for step, (mine, theirs) in enumerate(zip(seen, expected, strict=False), 1):
        norm = float(mine.norm())
        if norm == 0:
            raise Differs(f"Step {step}: the gradient is 0. Is `backward()` called, and not wiped out before the step?")
        if norm > clip_norm * 1.001:
            raise Differs(f"Step {step}: the gradient's norm is {norm:.3f}, above clip_norm = {clip_norm}.")
        if not torch.allclose(mine, theirs, atol=1e-4):
            why = "Is it that of the mean loss per word?" if step == 1 else "Is that of the step before still in it?"
            raise Differs(f"Step {step}: the gradient is not that of this batch's loss. {why}")
    if len(seen) != len(expected):
        raise Differs(f"{len(seen)} steps were taken; {epochs} epochs of {len(batches)} batches are {len(expected)}.")
    means = [sum(losses[e * len(batches) : (e + 1) * len(batches)]) / len(batches) for e in range(epochs)]
    same("the returned losses", [float(loss) for loss in _entries(got)], means, 1e-4)


def expect_ablation(function: Callable) -> None:
    """3.5: settings with one part of the model taken away, and nothing else changed."""
    for profile in ("sample", "tiny"):
        config = PROFILES[profile]
        got = call(function, config)
        if not isinstance(got, Config):
            raise Differs(f"ablation(config) must return a Config, yours returns {kind_of(got)}.")
        before, after = asdict(config), asdict(got)
        others = [section for section in before if section != "model" and before[section] != after[section]]
        if others:
            raise Differs(f"`{others[0]}` is changed, too. Only the model may differ, so that its part made the score.")
        changed = [name for name in before["model"] if before["model"][name] != after["model"][name]]
        if not changed:
            raise Differs("The settings are as they were: nothing is taken away.")
        if len(changed) > 1:
            raise Differs(f"{' and '.join(changed)} differ. Change one, or nobody knows which of them made the score.")
        if changed[0] not in ("attention", "encoder", "frame_order", "max_frames"):
            raise Differs(f"`{changed[0]}` is a size or a rate. Take a part away: the choice of frames, their order, …")
        if got.model.attention == "dot":
            raise Differs('"dot" is another kind of attention. Take attention away, or another part.')


def _gradient(model: CaptionModel) -> Tensor:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients])


def _entries(got: Any) -> list:
    if not isinstance(got, list | tuple):
        raise Differs(f"train must return a list with the loss of each epoch, yours returns {kind_of(got)}.")
    return list(got)


def _tensor(what: str, got: Any, expected: Tensor) -> Tensor:
    """A returned tensor of the shape that is expected. Raises Differs for others."""
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        raise Differs(f"{what} must be a tensor of shape {tuple(expected.shape)}, yours is {kind_of(got)}.")
    return got.detach().double()
