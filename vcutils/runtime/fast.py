"""Teacher forcing as training computes it: the values and gradients of `CaptionModel.forward`, several times sooner.

- Nothing is computed for padding: captions are sorted by length, and the shorter ones leave as they end.
- Logits are computed once for the whole batch, for real words only.
- The gradient of a weight that every step uses is one matrix product over all steps, not one per step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class TrainingModel(nn.Module):
    """A CaptionModel whose forward pass is the fast one; it shares the model's parameters."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, frame_mask: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (n, V) of the n real words in row order; attention weights (B, K, L, T), zero on padding; matches.

        `inputs` (B, K, L) are <start> and the words, then <pad>; the n positions are those of `inputs != <pad>`.
        `matches` (n, B, T), of "matched" attention alone, are those of the words said with the frames of every clip.
        """
        decoder, memory, (_, count, length) = self.model.decoder, self.model.encode(features, frame_mask), inputs.shape
        pad = decoder.embed.padding_idx
        lengths, order = (inputs != pad).flatten(0, 1).sum(dim=1).sort(descending=True, stable=True)
        steps = torch.arange(length, device=inputs.device)
        alive = steps[:, None] < lengths  # (L, N)
        # Where the n words of all steps stand among the N · L positions, step after step.
        positions = (order * length + steps[:, None])[alive]
        counts = [n for n in alive.sum(dim=1).tolist() if n]
        embedded = decoder.dropout(decoder.embed(inputs.flatten()[positions]))  # (n, E)
        words = decoder.word_gates(embedded).split(counts)  # (n_t, 4H) of each step
        h, c, *_ = (state.flatten(0, 1)[order] for state in decoder.start(memory, count))
        matches, ready, query = None, [], None
        if decoder.is_matched:  # what was said does not depend on the state: all steps' weights at once
            said = decoder.dropout(decoder.attention.said(inputs)).cumsum(dim=2).flatten(0, 2)[positions]  # (n, A)
            products = said @ memory.keys[memory.mask].T  # under autocast in half precision, which said is not
            matches = products.new_full((len(said), memory.mask.numel()), float("-inf"))
            matches = matches.index_copy(1, memory.mask.flatten().nonzero().flatten(), products)
            matches = matches.unflatten(1, memory.mask.shape)  # (n, B, T)
            clips = positions // (count * length)
            own = matches[torch.arange(len(clips), device=clips.device), clips]
            ready = decoder.attention.weigh(own, memory.mask[clips]).split(counts)  # (n_t, T) of each step
        else:
            query = SharedLinear(decoder.attention.query)
        state_gates = SharedLinear(decoder.state_gates)
        states, contexts, all_weights = [], [], []
        for t, word_gates in enumerate(words):
            captions = order[: len(word_gates)]
            h, c = h[: len(captions)], c[: len(captions)]
            weights = self._attend(query, h, memory, captions // count) if query else ready[t]  # (n_t, T)
            context = _mix(weights, memory.values, captions, count)  # (n_t, C)
            gates = word_gates + state_gates(torch.cat([context, h], dim=-1))
            i, f, g, o = gates.chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
            contexts.append(context)
            all_weights.append(weights)
        in_row_order = positions.argsort()
        logits = decoder.logits(torch.cat(states)[in_row_order], torch.cat(contexts)[in_row_order])
        rows = torch.cat(all_weights)
        spread = rows.new_zeros(inputs.numel(), rows.shape[1]).index_copy(0, positions, rows)
        return logits, spread.view(*inputs.shape, -1), None if matches is None else matches[in_row_order]

    def _attend(self, query: "SharedLinear", h: Tensor, memory: Any, clips: Tensor) -> Tensor:
        """Weights (n, T) of captions' states h (n, H) over the frames of their `clips` (n,)."""
        keys, mask = memory.keys.index_select(0, clips), memory.mask[clips]
        return self.model.decoder.attention.weigh(query(h)[:, None], keys, mask)


def fast_loss(
    model: nn.Module,
    batch: Any,
    pad: int,
    label_smoothing: float = 0.0,
    inputs: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float = 1.0,
    matching: float = 0.0,
) -> Tensor:
    """The loss of `model.caption_loss` through a TrainingModel (or its wrapper for many GPUs).

    `inputs` (B, K, L) replaces the words that are read (scheduled sampling); the targets stay. With `weights` (B, K)
    each word's loss is multiplied by its caption's. Logits are divided by `temperature`. `matching_loss` is added,
    `matching` times.
    """
    real = batch.targets != pad
    # <end> is a target and never an input; a position is real when its target is.
    given = (batch.inputs if inputs is None else inputs).masked_fill(~real, pad)
    logits, _, matches = model(batch.features, batch.frame_mask, given)
    words = (logits.float() / temperature, batch.targets[real])
    if weights is None:
        loss = functional.cross_entropy(*words, label_smoothing=label_smoothing)
    else:
        each = functional.cross_entropy(*words, reduction="none", label_smoothing=label_smoothing)
        loss = (each * weights[:, :, None].expand_as(real)[real]).mean()
    if matching:
        loss = loss + matching * matching_loss(matches, batch.frame_mask, real.nonzero()[:, 0])
    return loss


@torch.no_grad()
def mean_loss(network: Any, batches: Iterable[Any], device: torch.device) -> float:
    """Mean cross-entropy per real word, in nats, of all batches."""
    loss, words, pad = 0.0, 0, network.model.decoder.embed.padding_idx
    for batch in batches:
        batch = send_to_device(batch, device)
        count = int((batch.targets != pad).sum())
        loss += float(fast_loss(network, batch, pad)) * count
        words += count
    return loss / words


def matching_loss(matches: Tensor, frame_mask: Tensor, clips: Tensor) -> Tensor:
    """How badly the words said so far tell their own clip from the batch's others: cross-entropy in nats.

    For matches (n, B, T) of n words, frames (B, T), the words' clips (n,). A clip's score is the logarithm of the mean
    of exp(match) over its frames (InfoNCE, van den Oord et al. 2018). It teaches "matched" attention which words go
    with which frames.
    """
    scores = matches.float().logsumexp(dim=-1) - frame_mask.sum(dim=1).log()  # (n, B)
    return functional.cross_entropy(scores, clips)


@torch.no_grad()
def sampled_inputs(model: nn.Module, batch: Any, pad: int, start: int, share: float) -> Tensor:
    """Input words (B, K, L) of which `share` are the model's own guesses of one teacher-forced pass.

    Scheduled sampling (Bengio et al. 2015) in the two-pass form of Mihaylova & Martins 2019.
    """
    real = batch.targets != pad
    logits, *_ = model(batch.features, batch.frame_mask, batch.inputs.masked_fill(~real, pad))
    logits[:, [pad, start]] = float("-inf")  # no one reads them back
    guesses = torch.zeros_like(batch.targets)
    guesses[real] = logits.argmax(dim=-1)
    inputs = batch.inputs.clone()
    is_guess = torch.rand((*inputs.shape[:2], inputs.shape[2] - 1), device=inputs.device) < share
    inputs[:, :, 1:] = torch.where(is_guess & real[:, :, 1:], guesses[:, :, :-1], inputs[:, :, 1:])
    return inputs


def _mix(weights: Tensor, values: Tensor, captions: Tensor, count: int) -> Tensor:
    """Contexts (n, C) of the captions (n,) still being written, by weights (n, T) over values (B, T, C)."""
    clips, frames, _ = values.shape
    spread = weights.new_zeros(clips * count, frames).index_copy(0, captions, weights)
    return (spread.view(clips, count, frames) @ values).flatten(0, 1)[captions]


class SharedLinear:
    """A linear layer without bias that every step calls: its weight's gradient is one product over all steps."""

    def __init__(self, layer: nn.Linear) -> None:
        weight = layer.weight
        if torch.is_autocast_enabled(weight.device.type):  # cast once, not at every step
            weight = weight.to(torch.get_autocast_dtype(weight.device.type))
        self.steps: list[tuple[Tensor, Tensor]] = []  # (input, gradient of the output) of each step
        self.weight = weight
        if torch.is_grad_enabled() and weight.requires_grad:
            self.weight = _CollectGradient.apply(weight, self.steps)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, outputs) from x (…, inputs)."""
        x = x.to(self.weight.dtype)
        return _Product.apply(x, self.weight, self.steps) if self.weight.requires_grad else x @ self.weight.T


class _CollectGradient(torch.autograd.Function):
    """The weight itself; its backward runs after that of all products which use it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: list) -> Tensor:
        ctx.steps = steps
        ctx.set_materialize_grads(False)  # the products give none
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor, None]:
        inputs, gradients = (torch.cat(tensors) for tensors in zip(*ctx.steps, strict=True))
        ctx.steps.clear()
        return gradients.T @ inputs, None


class _Product(torch.autograd.Function):
    """x @ weight.T; leaves (x, gradient) in `steps` for the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, steps: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return x @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        ctx.steps.append((x.flatten(0, -2), gradient.flatten(0, -2)))
        return gradient @ weight, None, None
