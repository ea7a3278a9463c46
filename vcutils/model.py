"""Soft attention over frames: a BiLSTM encoder, additive attention, an LSTM decoder.

    features (B, T, D) → projection (B, T, 2H) → BiLSTM over the frames that exist → memory (B, T, 2H)
    word t: query = decoder state before the word → weights over frames → context → LSTM cell over
            [word; context] → logits of the next word

Sources: Bahdanau et al. 2015 (additive attention, section 3.1); Yao et al. 2015 (temporal attention for video);
Xu et al. 2015 (initial state from the mean of the memory, section 3.1.2; the context also enters the word logits,
equation 7).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vcutils.config import ModelConfig
from vcutils.dataset import Batch
from vcutils.vocab import PAD

State = tuple[Tensor, Tensor]  # hidden and cell state of the decoder, (B, K, H) each


@dataclass
class Memory:
    """What the decoder may look at: B encoded clips."""

    values: Tensor  # (B, T, C) encoded frames
    keys: Tensor  # (B, T, A) the frames' part of the attention score, computed once per clip
    mask: Tensor  # (B, T) bool, True on frames that exist

    def select(self, rows: Tensor) -> "Memory":
        """The memory of some clips, by row index."""
        return Memory(self.values[rows], self.keys[rows], self.mask[rows])

    def each(self, frames: Tensor) -> Tensor:
        """Something of every frame (B, T, …) beside every state of the decoder."""
        return frames[:, None]

    def mix(self, weights: Tensor) -> Tensor:
        """Contexts (B, K, C): the values' means by weights (B, K, T)."""
        return weights @ self.values


@dataclass
class PackedMemory(Memory):
    """The same for only n of the B·K captions: the decoder's states are (n, H), its contexts (n, C)."""

    captions: Tensor  # (n,) which of the B·K captions, row by row
    count: int  # K

    def each(self, frames: Tensor) -> Tensor:
        """As Memory's, (n, T, …)."""
        return frames.index_select(0, self.captions // self.count)

    def mix(self, weights: Tensor) -> Tensor:
        """As Memory's, (n, C) by weights (n, T)."""
        clips, frames = self.mask.shape
        spread = weights.new_zeros(clips * self.count, frames).index_copy(0, self.captions, weights)
        return super().mix(spread.view(clips, self.count, frames)).flatten(0, 1)[self.captions]


class Encoder(nn.Module):
    """Frames (B, T, D) → encoded frames (B, T, 2H), zero where no frame exists."""

    def __init__(self, config: ModelConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        width = 2 * config.encoder_dim
        self.project = nn.Linear(feature_dim, width)
        self.dropout = nn.Dropout(config.dropout or 0.0)
        if config.encoder == "bilstm":
            self.lstm = nn.LSTM(width, config.encoder_dim, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, T, D) with mask (B, T); padding never reaches the LSTM."""
        frames = self.dropout(torch.relu(self.project(features)))
        lengths = mask.sum(dim=1)
        back = None
        if self.config.frame_order == "shuffled":
            frames, back = _shuffle(frames, lengths, self.training)
        if self.config.encoder == "bilstm":
            packed = pack_padded_sequence(frames, lengths.cpu(), batch_first=True, enforce_sorted=False)
            encoded, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=mask.shape[1])
            # The frame's own projection stays visible beside what the LSTM has seen around it.
            frames = frames + encoded
        if back is not None:  # attention weights are shown at the frames' true places
            frames = frames.gather(1, back[:, :, None].expand_as(frames))
        return frames * mask[:, :, None]


def _shuffle(frames: Tensor, lengths: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Real frames (B, T, C) of each clip in random order, and the index (B, T) that undoes it.

    Another order at every call in training, the same one every time otherwise.
    """
    count = frames.shape[1]
    fixed = None if training else torch.Generator(frames.device).manual_seed(0)
    keys = torch.rand(frames.shape[:2], device=frames.device, generator=fixed)
    position = torch.arange(count, device=frames.device)
    keys = torch.where(position < lengths[:, None], keys, 2.0 + position)  # padding stays at the end
    order = keys.argsort(dim=1)
    return frames.gather(1, order[:, :, None].expand_as(frames)), order.argsort(dim=1)


class RepeatedLinear(nn.Linear):
    """A linear layer without bias that a loop calls at every step.

    Within `with layer.one_gradient():` its weight's gradient becomes one matrix product over all steps at the end of
    the backward pass, not one per step: the same numbers, a third less training time on a CPU.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self._shared: tuple[Tensor, list] | None = None

    @contextmanager
    def one_gradient(self) -> Iterator[None]:
        """Steps within share one gradient."""
        steps: list[tuple[Tensor, Tensor]] = []  # (input, gradient of the output) of each step
        if torch.is_grad_enabled() and self.weight.requires_grad:
            self._shared = _CollectGradient.apply(self.weight, steps), steps
        try:
            yield
        finally:
            self._shared = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, outputs) from x (…, inputs)."""
        return super().forward(x) if self._shared is None else _RepeatedProduct.apply(x, *self._shared)


class _CollectGradient(torch.autograd.Function):
    """The weight itself; its backward runs after that of all products which use it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: list) -> Tensor:
        ctx.steps = steps
        ctx.set_materialize_grads(False)  # the products give none
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor, None]:
        inputs, gradients = (torch.cat(tensors) for tensors in zip(*ctx.steps, strict=True))
        ctx.steps.clear()
        return gradients.T @ inputs, None


class _RepeatedProduct(torch.autograd.Function):
    """x @ weight.T; leaves (x, gradient) in `steps` for the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, steps: list) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        ctx.steps.append((x.flatten(0, -2), gradient.flatten(0, -2)))
        return gradient @ weight, None, None


class AdditiveAttention(nn.Module):
    """score = v · tanh(W_m m_t + W_h h); weights sum to 1 over real frames and are exactly 0 on padding."""

    def __init__(self, config: ModelConfig, memory_dim: int) -> None:
        super().__init__()
        self.uniform = config.attention == "uniform"
        self.keys = nn.Linear(memory_dim, config.attention_dim)
        self.query = RepeatedLinear(config.decoder_dim, config.attention_dim)
        self.score = nn.Linear(config.attention_dim, 1, bias=False)

    def forward(self, hidden: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context (B, K, C) and weights (B, K, T) for decoder states (B, K, H)."""
        mask = memory.each(memory.mask)
        if self.uniform:
            scores = mask.new_zeros(*hidden.shape[:-1], mask.shape[-1], dtype=torch.float)
        else:
            query = self.query(hidden).unsqueeze(-2)  # (B, K, 1, A)
            scores = self.score(torch.tanh(memory.each(memory.keys) + query)).squeeze(-1)  # (B, K, T)
        scores = scores.float().masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=-1).to(memory.values.dtype)
        return memory.mix(weights), weights


class Decoder(nn.Module):
    """One word at a time: attend, update the state, score the next word."""

    def __init__(self, config: ModelConfig, vocab_size: int, memory_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, config.embed_dim, padding_idx=PAD)
        self.attention = AdditiveAttention(config, memory_dim)
        self.word_gates = nn.Linear(config.embed_dim, 4 * config.decoder_dim)
        self.gates = RepeatedLinear(memory_dim + config.decoder_dim, 4 * config.decoder_dim)
        for layer in (self.word_gates, self.gates):  # as nn.LSTMCell starts
            nn.init.uniform_(layer.weight, -(config.decoder_dim**-0.5), config.decoder_dim**-0.5)
        self.init_hidden = nn.Linear(memory_dim, config.decoder_dim)
        self.init_cell = nn.Linear(memory_dim, config.decoder_dim)
        self.mix = nn.Linear(config.decoder_dim + memory_dim, config.embed_dim)
        self.words = nn.Linear(config.embed_dim, vocab_size)
        self.dropout = nn.Dropout(config.dropout or 0.0)

    def start(self, memory: Memory, count: int) -> State:
        """The state before the first word, for `count` captions of each clip: (B, count, H) twice."""
        mean = memory.values.sum(dim=1) / memory.mask.sum(dim=1, keepdim=True)  # values are zero on padding
        hidden, cell = torch.tanh(self.init_hidden(mean)), torch.tanh(self.init_cell(mean))
        return hidden[:, None].expand(-1, count, -1), cell[:, None].expand(-1, count, -1)

    def read(self, words: Tensor) -> Tensor:
        """The words' part of the LSTM's gates (…, 4H) for word ids (…): it needs no state, so all steps share it."""
        return self.word_gates(self.dropout(self.embed(words)))

    def step(self, word_gates: Tensor, state: State, memory: Memory) -> tuple[State, Tensor, Tensor]:
        """Read one word per caption (B, K, 4H, see `read`): the new state, the context (B, K, C) and the attention
        weights (B, K, T) that the next word is said with.
        """
        context, weights = self.attention(state[0], memory)
        gates = word_gates + self.gates(torch.cat([context, state[0]], dim=-1))
        take, keep, new, show = gates.chunk(4, dim=-1)
        cell = keep.sigmoid() * state[1] + take.sigmoid() * new.tanh()
        return (show.sigmoid() * cell.tanh(), cell), context, weights

    def logits(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Word scores (…, V) from states (…, H) and contexts (…, C)."""
        return self.words(self.dropout(torch.tanh(self.mix(torch.cat([hidden, context], dim=-1)))))


class CaptionModel(nn.Module):
    """Encoder and decoder together; `forward` is teacher forcing, the steps are for decoding."""

    def __init__(self, config: ModelConfig, vocab_size: int, feature_dim: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.feature_dim = config, vocab_size, feature_dim
        memory_dim = 2 * config.encoder_dim
        self.encoder = Encoder(config, feature_dim)
        self.decoder = Decoder(config, vocab_size, memory_dim)

    def encode(self, features: Tensor, frame_mask: Tensor) -> Memory:
        """Encode B clips once, for all their captions.

        Raises ValueError when shapes do not fit features (B, T, D) and frame_mask (B, T), when a clip has no frame, or
        when the mask has holes (leave such frames out of the features instead).
        """
        if features.ndim != 3 or features.shape[2] != self.feature_dim:
            raise ValueError(f"features must be (B, T, {self.feature_dim}), are {tuple(features.shape)}")
        if frame_mask.shape != features.shape[:2]:
            raise ValueError(f"frame_mask must be {tuple(features.shape[:2])}, is {tuple(frame_mask.shape)}")
        if not bool(frame_mask[:, 0].all() & (frame_mask[:, 1:] <= frame_mask[:, :-1]).all()):
            raise ValueError("frame_mask must be True on a clip's first frames (at least one) and False behind them")
        if self.config.max_frames:
            return self._encode_few(features, frame_mask)
        values = self.encoder(features, frame_mask)
        return Memory(values, self.decoder.attention.keys(values), frame_mask)

    def _encode_few(self, features: Tensor, frame_mask: Tensor) -> Memory:
        """Encode `max_frames` of each clip's frames, spread evenly; the others are masked and weigh 0."""
        lengths, count = frame_mask.sum(dim=1, keepdim=True), self.config.max_frames
        place = torch.arange(features.shape[1], device=features.device)
        # A frame is kept when it is the first of one of `count` equal parts of its clip.
        part = place * count // lengths
        kept = frame_mask & ((part != (place - 1) * count // lengths) | (place == 0))
        order = (~kept).int().argsort(dim=1, stable=True)  # kept frames first, in their order
        values = self.encoder(features.gather(1, order[:, :, None].expand_as(features)), kept.gather(1, order))
        values = values.gather(1, order.argsort(dim=1)[:, :, None].expand_as(values))
        return Memory(values, self.decoder.attention.keys(values), kept)

    def forward(self, features: Tensor, frame_mask: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing: logits (n, V) of the n real words, and weights (B, K, L, T), zero on padding.

        `inputs` (B, K, L) are <start> and the words, then <pad>; the n positions are those of `inputs != <pad>` in row
        order. Nothing is computed for padding: captions are sorted by length, and the shorter ones leave as they end.
        Logits are computed once for the whole batch.
        """
        decoder, memory, (_, count, length) = self.decoder, self.encode(features, frame_mask), inputs.shape
        lengths, order = (inputs != PAD).flatten(0, 1).sum(dim=1).sort(descending=True, stable=True)
        alive = torch.arange(length, device=inputs.device)[:, None] < lengths  # (L, B·K)
        # Where the n words of all steps stand among the B·K·L places, step after step.
        places = (order * length + torch.arange(length, device=inputs.device)[:, None])[alive]
        counts = [n for n in alive.sum(dim=1).tolist() if n]
        words = decoder.read(inputs.flatten()[places]).split(counts)
        hidden, cell = (s.flatten(0, 1)[order] for s in decoder.start(memory, count))
        steps = []
        with decoder.gates.one_gradient(), decoder.attention.query.one_gradient():
            for word in words:
                packed = PackedMemory(memory.values, memory.keys, memory.mask, order[: len(word)], count)
                (hidden, cell), *rest = decoder.step(word, (hidden[: len(word)], cell[: len(word)]), packed)
                steps.append((hidden, *rest))
        hiddens, contexts, weights = (torch.cat(parts) for parts in zip(*steps, strict=True))
        in_row_order = places.argsort()
        spread = weights.new_zeros(inputs.numel(), weights.shape[1]).index_copy(0, places, weights)
        return decoder.logits(hiddens[in_row_order], contexts[in_row_order]), spread.view(*inputs.shape, -1)


def caption_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0, inputs: Tensor | None = None) -> Tensor:
    """Mean cross-entropy per real word, in nats: the target at t is the input at t + 1, padding takes no part.

    `inputs` (B, K, L) replaces the words that are read (scheduled sampling); the targets stay. With weights in the
    batch each word's loss is multiplied by its caption's, and nothing is smoothed.
    """
    real = batch.targets != PAD
    # <end> is a target and never an input; a position is real when its target is.
    given = batch.inputs if inputs is None else inputs
    given = given.masked_fill(~real, PAD)
    logits, _ = model(batch.features, batch.frame_mask, given)
    if batch.weights is not None:
        each = functional.cross_entropy(logits.float(), batch.targets[real], reduction="none")
        return (each * batch.weights[:, :, None].expand_as(real)[real]).mean()
    return functional.cross_entropy(logits.float(), batch.targets[real], label_smoothing=label_smoothing)
