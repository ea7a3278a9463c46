"""Soft attention over frames: a BiLSTM encoder, additive attention, an LSTM decoder, the loss.

    features (B, T, D) → projection (B, T, C) → BiLSTM over the frames that exist → memory (B, T, C)
    word t: query = decoder state before the word → weights over frames → context → LSTM cell over
            [word; context] → logits of the next word

Sources: Bahdanau et al. 2015 (additive attention, section 3.1); Yao et al. 2015 (attention over a
video's frames); Xu et al. 2015 (initial state from the mean of the memory, section 3.1.2; the
context also enters the word logits, equation 7).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vcutils.config import ModelConfig
from vcutils.runtime.frames import check_frames, encode_some, lstm_of
from vcutils.vocab import PAD

# The decoder's hidden and cell state, (B, K, H) each; with "matched" also the sum of the
# vectors of the words said, (B, K, A).
State = tuple[Tensor, ...]


class Memory(NamedTuple):
    """What the decoder may look at: B encoded clips."""

    values: Tensor  # (B, T, C) encoded frames
    keys: Tensor  # (B, T, A) the frames' part of the attention score, computed once per clip
    mask: Tensor  # (B, T) bool, True on frames that exist


class Encoder(nn.Module):
    """Frames (B, T, D) → encoded frames (B, T, C), zero where no frame exists."""

    def __init__(self, config: ModelConfig, feature_dim: int) -> None:
        super().__init__()
        C = 2 * config.encoder_dim  # the LSTM's two directions, side by side
        self.project = nn.Linear(feature_dim, C)
        self.dropout = nn.Dropout(config.dropout or 0.0)
        self.lstm = None
        if config.encoder == "bilstm":
            self.lstm = nn.LSTM(C, config.encoder_dim, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor, mask: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode features (B, T, D) with mask (B, T); padding never reaches the LSTM."""
        frames = self.dropout(torch.relu(self.project(features)))  # (B, T, C)
        if self.lstm is not None and lengths is not None:
            frames = frames + lstm_of(self.lstm, frames, lengths)  # as below, only without a wait
        elif self.lstm is not None:
            lengths, T = mask.sum(dim=1).cpu(), mask.shape[1]
            packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
            around, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=T)
            frames = frames + around  # the frame's own projection stays visible beside the LSTM's
        return frames * mask[:, :, None]


class AdditiveAttention(nn.Module):
    """score = v · tanh(W_h h + W_m m_t); weights sum to 1, and are exactly 0 on padding."""

    def __init__(self, config: ModelConfig, memory_dim: int) -> None:
        super().__init__()
        self.is_uniform = config.attention == "uniform"
        self.keys = nn.Linear(memory_dim, config.attention_dim)  # W_m
        self.query = nn.Linear(config.decoder_dim, config.attention_dim, bias=False)  # W_h
        self.score = nn.Linear(config.attention_dim, 1, bias=False)  # v
        self.requires_grad_(not self.is_uniform)  # equal weights have nothing to learn

    def forward(self, h: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context (B, K, C) and weights (B, K, T) for decoder states h (B, K, H)."""
        query = self.query(h)[:, :, None]  # (B, K, 1, A)
        weights = self.weigh(query, memory.keys[:, None], memory.mask[:, None])  # (B, K, T)
        return weights @ memory.values, weights

    def weigh(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Weights (…, T) that queries (…, 1, A) give to frames by keys (…, T, A), mask (…, T)."""
        scores = self.score(torch.tanh(query + keys)).squeeze(-1)
        return frame_weights(scores, mask, self.is_uniform)


class MatchedAttention(nn.Module):
    """score = (sum of the vectors of the words said) · key: which frames go with these words?"""

    def __init__(self, config: ModelConfig, vocab_size: int, feature_dim: int) -> None:
        super().__init__()
        self.is_uniform = False
        self.said = nn.Embedding(vocab_size, config.attention_dim, padding_idx=PAD)
        nn.init.normal_(self.said.weight, std=0.05)  # small: at first all frames are alike
        self.keys = nn.Linear(feature_dim, config.attention_dim)  # no LSTM has mixed the frames

    def forward(self, said: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context (B, K, C) and weights (B, K, T) for the sums of the words said (B, K, A)."""
        weights = self.weigh(said @ memory.keys.mT, memory.mask[:, None])
        return weights @ memory.values, weights

    def weigh(self, matches: Tensor, mask: Tensor) -> Tensor:
        """Weights (…, T) of matches (…, T) with the frames that exist by mask (…, T)."""
        return frame_weights(matches, mask, self.is_uniform)


def frame_weights(scores: Tensor, mask: Tensor, is_uniform: bool) -> Tensor:
    """Softmax of scores (…, T) over the frames that exist by mask (…, T), or the same for all."""
    exact = (torch.zeros_like(scores) if is_uniform else scores).float()  # half rounds too much
    return exact.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(scores.dtype)


class Decoder(nn.Module):
    """One word at a time: attend, update the state, score the next word."""

    def __init__(self, config: ModelConfig, vocab_size: int, feature_dim: int) -> None:
        super().__init__()
        E, H, memory_dim = config.embed_dim, config.decoder_dim, 2 * config.encoder_dim
        self.embed = nn.Embedding(vocab_size, E, padding_idx=PAD)
        self.attention: Any = AdditiveAttention(config, memory_dim)
        self.is_matched = config.attention == "matched"
        if self.is_matched:
            self.attention = MatchedAttention(config, vocab_size, feature_dim)
        # An LSTM cell over [word; context; h] in two parts: training does all words' part at once.
        self.word_gates = nn.Linear(E, 4 * H)
        self.state_gates = nn.Linear(memory_dim + H, 4 * H, bias=False)
        for layer in (self.word_gates, self.state_gates):  # as nn.LSTMCell starts
            nn.init.uniform_(layer.weight, -(H**-0.5), H**-0.5)
        self.init_h = nn.Linear(memory_dim, H)
        self.init_c = nn.Linear(memory_dim, H)
        self.readout = nn.Linear(H + memory_dim, E)
        self.output = nn.Linear(E, vocab_size)
        self.dropout = nn.Dropout(config.dropout or 0.0)

    def start(self, memory: Memory, count: int) -> State:
        """The state before the first word, for `count` captions of each clip: (B, K, H) twice."""
        mean = memory.values.sum(dim=1) / memory.mask.sum(dim=1, keepdim=True)  # (B, C)
        parts = [torch.tanh(self.init_h(mean)), torch.tanh(self.init_c(mean))]
        if self.is_matched:
            parts.append(torch.zeros_like(memory.keys[:, 0]))  # nothing was said
        return tuple(part[:, None].expand(-1, count, -1) for part in parts)

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[State, Tensor, Tensor]:
        """Read one word per caption, words (B, K), and score the word behind it.

        Returns the new state, the logits (B, K, V) and the attention weights (B, K, T).
        """
        h, c, *said = state
        if self.is_matched:
            said = [said[0] + self.dropout(self.attention.said(words))]  # (B, K, A)
        context, weights = self.attention(*said or [h], memory)
        word = self.dropout(self.embed(words))  # (B, K, E)
        gates = self.word_gates(word) + self.state_gates(torch.cat([context, h], dim=-1))
        i, f, g, o = gates.chunk(4, dim=-1)  # input, forget, candidate, output: (B, K, H) each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h, c, *said), self.logits(h, context), weights

    def logits(self, h: Tensor, context: Tensor) -> Tensor:
        """Scores of the next word (…, V) from states (…, H) and contexts (…, C)."""
        hidden = torch.tanh(self.readout(torch.cat([h, context], dim=-1)))  # (…, E)
        return self.output(self.dropout(hidden))


class CaptionModel(nn.Module):
    """Encoder and decoder together; `forward` is teacher forcing, the steps are for decoding."""

    def __init__(self, config: ModelConfig, vocab_size: int, feature_dim: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.feature_dim = config, vocab_size, feature_dim
        self.encoder = Encoder(config, feature_dim)
        self.decoder = Decoder(config, vocab_size, feature_dim)

    def encode(self, features: Tensor, frame_mask: Tensor, lengths: Any = None) -> Memory:
        """Encode features (B, T, D) with frame_mask (B, T), once per clip for all its captions.

        `lengths` (B,) are the mask's, on the CPU. Raises ValueError for other shapes, or bad masks.
        """
        check_frames(features, frame_mask, self.feature_dim, lengths)
        values, mask = encode_some(self.encoder, features, frame_mask, self.config, lengths)
        decoder = self.decoder
        of_frames = decoder.dropout(features) if decoder.is_matched else values
        return Memory(values, decoder.attention.keys(of_frames), mask)

    def forward(self, features: Tensor, mask: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing: read the true word t, score word t + 1.

        `inputs` (B, K, L) are <start> and the words. Returns logits (B, K, L, V) and attention
        weights (B, K, L, T). Training uses an equal, faster form (`runtime.fast`).
        """
        memory = self.encode(features, mask)
        state = self.decoder.start(memory, count=inputs.shape[1])
        steps = []
        for t in range(inputs.shape[2]):
            state, logits, weights = self.decoder.step(inputs[:, :, t], state, memory)
            steps.append((logits, weights))
        logits, weights = (torch.stack(parts, dim=2) for parts in zip(*steps, strict=True))
        return logits, weights


def caption_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy per real word in nats, of logits (B, K, L, V) and targets (B, K, L).

    The target at t is the input at t + 1; padding takes no part.
    """
    logits, targets = logits.float().flatten(0, 2), targets.flatten()
    return cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=label_smoothing)
