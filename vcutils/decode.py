"""Generating captions: beam search over B clips at once, of which greedy search is the beam of one.

Every step is one pass through the decoder for all clips and all beams; clips that are done leave the batch. Each
hypothesis carries the attention row of every word: the weights over frames that the word was said with.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vcutils.config import DecodeConfig
from vcutils.model import CaptionModel, Memory, State
from vcutils.vocab import END, PAD, START, UNK, Vocabulary

NEVER = (PAD, START, UNK)  # no reader is helped by them


@dataclass
class Hypothesis:
    """One caption with what the model looked at."""

    words: list[str]  # L
    log_prob: float  # natural log of its probability, <end> included when it was reached
    score: float  # log_prob / length ** length_penalty, what beams are ranked by
    word_log_probs: np.ndarray  # (L,)
    attention: np.ndarray  # (L, T): row t holds the weights over frames that word t was said with
    end_attention: np.ndarray | None  # (T,) for <end>; None when the caption was cut at max_length

    @property
    def caption(self) -> str:
        """The words joined by blanks."""
        return " ".join(self.words)


@torch.inference_mode()
def generate(
    model: CaptionModel, vocabulary: Vocabulary, features: Tensor, frame_mask: Tensor, config: DecodeConfig
) -> list[list[Hypothesis]]:
    """Up to `beam_size` hypotheses per clip, best first, for features (B, T, D) and frame_mask (B, T).

    Ended captions come before unfinished ones; when no beam ends within max_length words, the best unfinished one
    is returned. Attention rows cover the clip's real frames only.
    """
    was_training = model.training
    model.eval()
    search = _Search(model, vocabulary, model.encode(features, frame_mask), frame_mask.sum(dim=1).tolist(), config)
    while len(search.clips):
        search.step()
    model.train(was_training)
    return search.results()


def caption_clips(
    model: CaptionModel,
    vocabulary: Vocabulary,
    batches: Iterable[tuple[list[str], Tensor, Tensor]],
    config: DecodeConfig,
) -> Iterator[tuple[str, list[Hypothesis]]]:
    """(id, hypotheses) of every clip of `batches` (see dataset.clip_batches), on the model's device."""
    device = next(model.parameters()).device
    for ids, features, frame_mask in batches:
        found = generate(model, vocabulary, features.to(device), frame_mask.to(device), config)
        yield from zip(ids, found, strict=True)


class _Search:
    """The beams of the clips that are not done. K is the beam size, t the number of words so far."""

    def __init__(
        self, model: CaptionModel, vocabulary: Vocabulary, memory: Memory, lengths: list[int], config: DecodeConfig
    ) -> None:
        self.model, self.vocabulary, self.memory, self.config = model, vocabulary, memory, config
        clips, frames = memory.mask.shape
        beams, device = config.beam_size, memory.values.device
        self.frames = lengths
        self.done: list[list[Hypothesis]] = [[] for _ in range(clips)]
        self.unfinished: list[list[Hypothesis]] = [[] for _ in range(clips)]
        self.clips = torch.arange(clips, device=device)  # which clips the rows below belong to
        self.state: State = model.decoder.start(memory, beams)
        self.words = torch.full((clips, beams, 1), START, device=device)  # (B, K, t + 1)
        self.log_probs = torch.zeros(clips, beams, 0, device=device)  # (B, K, t), of each word
        self.attention = torch.zeros(clips, beams, 0, frames, device=device)  # (B, K, t, T)
        # All beams start alike: only the first may be continued at the first step.
        self.total = torch.full((clips, beams), float("-inf"), device=device)
        self.total[:, 0] = 0

    def step(self) -> None:
        decoder, (rows, beams) = self.model.decoder, self.total.shape
        self.state, context, weights = decoder.step(decoder.read(self.words[:, :, -1]), self.state, self.memory)
        log_probs = decoder.logits(self.state[0], context).float().log_softmax(dim=-1)  # (B, K, V)
        log_probs[:, :, NEVER] = float("-inf")
        if self.words.shape[2] == 1:  # a caption has at least one word
            log_probs[:, :, END] = float("-inf")
        if self.config.no_repeat_ngram:
            self._block_repeats(log_probs)
        attention = torch.cat([self.attention, weights.float()[:, :, None]], dim=2)

        # 2K candidates per clip hold at least K that go on, since each beam can end in one way only.
        vocabulary_size = log_probs.shape[2]
        candidates = (self.total[:, :, None] + log_probs).flatten(1)
        best, where = candidates.topk(min(2 * beams, candidates.shape[1]), dim=1)
        parents, words = where.div(vocabulary_size, rounding_mode="floor"), where % vocabulary_size
        ends = (words == END) & best.isfinite()
        # As in greedy search, a caption ends only when its end is among the K best candidates.
        ends[:, beams:] = False
        for row, candidate in ends.nonzero().tolist():
            beam = int(parents[row, candidate])
            clip = int(self.clips[row])
            last = log_probs[row, beam, END][None]
            self._record(
                self.done[clip],
                row,
                beam,
                attention,
                torch.cat([self.log_probs[row, beam], last]),
                ended=True,
            )

        goes_on = (words != END).float() * 2 + torch.linspace(1, 0, words.shape[1], device=words.device)
        chosen = goes_on.topk(beams, dim=1).indices  # the first K that do not end, in order of their score
        parents, words, self.total = (x.gather(1, chosen) for x in (parents, words, best))
        self.total = self.total.masked_fill(words == END, float("-inf"))

        def follow(x: Tensor) -> Tensor:
            return x.gather(1, parents.view(rows, beams, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))

        said = log_probs.flatten(1).gather(1, parents * vocabulary_size + words)
        self.words = torch.cat([follow(self.words), words[:, :, None]], dim=2)
        self.log_probs = torch.cat([follow(self.log_probs), said[:, :, None]], dim=2)
        self.attention = follow(attention)
        self.state = (follow(self.state[0]), follow(self.state[1]))
        self._leave()

    def _leave(self) -> None:
        """Take clips that are done out of the batch."""
        beams, length = self.total.shape[1], self.words.shape[2] - 1
        best = (self.total.max(dim=1).values / length**self.config.length_penalty).tolist()
        scores = [sorted((h.score for h in self.done[c]), reverse=True)[:beams] for c in self.clips.tolist()]
        # Five poor endings must not cut off a good caption that is still being written.
        enough = [len(s) == beams and s[-1] >= b for s, b in zip(scores, best, strict=True)]
        full = torch.tensor(enough, device=self.clips.device)
        stuck = ~self.total.isfinite().any(dim=1)
        leaving = full | stuck | (length >= self.config.max_length)
        if not leaving.any():
            return
        for row in leaving.nonzero().flatten().tolist():
            clip = int(self.clips[row])
            for beam in self.total[row].isfinite().nonzero().flatten().tolist():
                self._record(self.unfinished[clip], row, beam, self.attention, self.log_probs[row, beam], ended=False)
        stay = (~leaving).nonzero().flatten()
        self.clips, self.total, self.words = self.clips[stay], self.total[stay], self.words[stay]
        self.log_probs, self.attention = self.log_probs[stay], self.attention[stay]
        self.state = (self.state[0][stay], self.state[1][stay])
        self.memory = self.memory.select(stay)

    def _record(
        self, kept: list[Hypothesis], row: int, beam: int, attention: Tensor, log_probs: Tensor, ended: bool
    ) -> None:
        rows = attention[row, beam, :, : self.frames[int(self.clips[row])]].cpu().numpy()
        words = self.words[row, beam, 1:].tolist()
        log_prob = float(log_probs.sum())
        kept.append(
            Hypothesis(
                words=[self.vocabulary.words[i] for i in words],
                log_prob=log_prob,
                score=log_prob / max(1, len(log_probs)) ** self.config.length_penalty,
                word_log_probs=log_probs[: len(words)].cpu().numpy(),
                attention=rows[: len(words)],
                end_attention=rows[-1] if ended else None,
            )
        )

    def _block_repeats(self, log_probs: Tensor) -> None:
        """Forbid every word that would repeat an n-gram of its own caption."""
        size = self.config.no_repeat_ngram
        for row, beams in enumerate(self.words[:, :, 1:].tolist()):
            for beam, words in enumerate(beams):
                tail = words[len(words) - size + 1 :] if size > 1 else []
                for start in range(len(words) - size + 1):
                    if words[start : start + size - 1] == tail:
                        log_probs[row, beam, words[start + size - 1]] = float("-inf")

    def results(self) -> list[list[Hypothesis]]:
        ranked = []
        for done, unfinished in zip(self.done, self.unfinished, strict=True):
            for group in (done, unfinished):
                group.sort(key=lambda h: -h.score)
            ranked.append((done + unfinished)[: self.config.beam_size])
        return ranked
