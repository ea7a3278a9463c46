"""Beam search over B clips and K beams at once: the captions of `decode.beam_search`, many times sooner.

Every step is one pass through the decoder for all clips and all beams; clips that are done leave the batch.
"""

from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from vcutils.config import DecodeConfig

Beam = tuple[list[int], np.ndarray, float, np.ndarray]  # ids with <end>, log-probs, score, attention rows (L, T)


def search(
    decoder: Any, memory: Any, lengths: list[int], start: int, end: int, never: list[int], config: DecodeConfig
) -> list[list[Beam]]:
    """Up to `beam_size` beams for each clip of a memory, best first, ended ones before those cut at max_length.

    `lengths` are the clips' frames; `start`, `end` and `never` are word ids, and words of `never` are not said.
    """
    beams = _Beams(decoder, memory, start, config)
    while len(beams.clips):
        beams.step(end, never)
    ranked = []
    for length, ended, unfinished in zip(lengths, beams.ended, beams.unfinished, strict=True):
        ordered = [beam for group in (ended, unfinished) for beam in sorted(group, key=lambda b: -b[2])]
        ranked.append([(ids, p, score, rows[:, :length]) for ids, p, score, rows in ordered[: config.beam_size]])
    return ranked


class _Beams:
    """The beams of the clips that are not done; t is the number of words so far."""

    def __init__(self, decoder: Any, memory: Any, start: int, config: DecodeConfig) -> None:
        self.decoder, self.memory, self.config = decoder, memory, config
        self.penalty = 1.0 if config.length_penalty is None else config.length_penalty
        (B, T), K, device = memory.mask.shape, config.beam_size, memory.mask.device
        self.ended: list[list[Beam]] = [[] for _ in range(B)]
        self.unfinished: list[list[Beam]] = [[] for _ in range(B)]
        self.clips = torch.arange(B, device=device)  # which clips the rows below belong to
        self.state = decoder.start(memory, K)
        self.words = torch.full((B, K, 1), start, device=device)  # (B, K, t + 1)
        self.log_probs = torch.zeros(B, K, 0, device=device)  # (B, K, t), of each word
        self.attention = torch.zeros(B, K, 0, T, device=device)  # (B, K, t, T)
        # All beams start alike: only the first may be continued at the first step.
        self.total = torch.full((B, K), float("-inf"), device=device)  # (B, K) log-probability
        self.total[:, 0] = 0

    def step(self, end: int, never: list[int]) -> None:
        """One more word for every beam."""
        B, K = self.total.shape
        self.state, logits, weights = self.decoder.step(self.words[:, :, -1], self.state, self.memory)
        log_probs = logits.float().log_softmax(dim=-1)  # (B, K, V)
        is_first = self.words.shape[2] == 1  # a caption has at least one word
        log_probs[:, :, [*never, end] if is_first else never] = float("-inf")
        if self.config.no_repeat_ngram is not None:
            _block_repeats(self.words, log_probs, self.config.no_repeat_ngram)
        self.attention = torch.cat([self.attention, weights.float()[:, :, None]], dim=2)

        # Each beam yields at most one <end>, so the top 2K hold at least K unfinished beams.
        V = log_probs.shape[2]
        candidates = (self.total[:, :, None] + log_probs).flatten(1)  # (B, K · V)
        best, index = candidates.topk(min(2 * K, candidates.shape[1]), dim=1)
        beams, words = index.div(V, rounding_mode="floor"), index % V  # (B, 2K) each
        is_end = (words == end) & best.isfinite()
        is_end[:, K:] = False  # as in greedy search, an end must be among the K best
        for row, candidate in is_end.nonzero().tolist():
            beam = int(beams[row, candidate])
            self._record(self.ended, row, beam, [end], log_probs[row, beam, end][None])

        unfinished = (words != end).float() * 2 + torch.linspace(1, 0, words.shape[1]).to(best)
        chosen = unfinished.topk(K, dim=1).indices  # the first K that do not end, best first
        beams, words, self.total = (x.gather(1, chosen) for x in (beams, words, best))
        self.total = self.total.masked_fill(words == end, float("-inf"))
        rows = torch.arange(B, device=beams.device)[:, None]  # (B, 1) against beams (B, K)
        log_prob = log_probs[rows, beams, words][:, :, None]
        self._select(rows, beams)
        self.words = torch.cat([self.words, words[:, :, None]], dim=2)
        self.log_probs = torch.cat([self.log_probs, log_prob], dim=2)
        self._leave()

    def _select(self, *index: Any) -> None:
        """Go on with these clips, or these beams of each clip."""
        self.words, self.log_probs, self.attention = self.words[index], self.log_probs[index], self.attention[index]
        self.state = tree_map(itemgetter(index), self.state)  # an ensemble's holds those of its models

    def _leave(self) -> None:
        """Take clips that are done out of the batch."""
        K, length = self.total.shape[1], self.words.shape[2] - 1
        best = (self.total.max(dim=1).values / length**self.penalty).tolist()
        stay = []
        for row, clip in enumerate(self.clips.tolist()):
            scores = sorted((beam[2] for beam in self.ended[clip]), reverse=True)[:K]
            # Five poor endings must not cut off a good caption that is still being written.
            settled = len(scores) == K and scores[-1] >= best[row]
            if length < self.config.max_length and not settled and best[row] > float("-inf"):
                stay.append(row)
                continue
            for beam in self.total[row].isfinite().nonzero().flatten().tolist():
                self._record(self.unfinished, row, beam, [], self.total.new_zeros(0))
        if len(stay) < len(self.clips):
            self._select(stay)
            self.clips, self.total = self.clips[stay], self.total[stay]
            self.memory = tree_map(itemgetter(stay), self.memory)

    def _record(self, group: list[list[Beam]], row: int, beam: int, last: list[int], log_prob: Tensor) -> None:
        """Add a caption to a group, with its last word (<end>) and that word's log-probability, or unfinished."""
        ids = self.words[row, beam, 1:].tolist() + last
        log_probs = torch.cat([self.log_probs[row, beam], log_prob]).cpu().numpy()
        score = float(log_probs.sum()) / max(1, len(ids)) ** self.penalty
        group[int(self.clips[row])].append((ids, log_probs, score, self.attention[row, beam].cpu().numpy()))


def _block_repeats(words: Tensor, log_probs: Tensor, size: int) -> None:
    """Forbid every word that would repeat an n-gram of its own caption, of words (B, K, t + 1)."""
    for row, beams in enumerate(words[:, :, 1:].tolist()):
        for beam, ids in enumerate(beams):
            tail = ids[len(ids) - size + 1 :]
            for begin in range(len(ids) - size + 1):
                if ids[begin : begin + size - 1] == tail:
                    log_probs[row, beam, ids[begin + size - 1]] = float("-inf")
