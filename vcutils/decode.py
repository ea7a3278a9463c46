"""Generating captions: beam search over B clips at once, of which greedy search is the beam of one.

Every step is one pass through the decoder for all clips and all beams; clips that are done leave
the batch. Each hypothesis carries the attention row of every word: the weights over frames that the
word was said with.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vcutils.config import DecodeConfig
from vcutils.dataset import clip_batches
from vcutils.model import CaptionModel, Memory
from vcutils.runtime.store import FeatureStore
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
    model: CaptionModel,
    vocabulary: Vocabulary,
    features: Tensor,
    frame_mask: Tensor,
    config: DecodeConfig,
) -> list[list[Hypothesis]]:
    """Up to `beam_size` hypotheses per clip, best first, for features (B, T, D), mask (B, T).

    Ended captions come before unfinished ones. Attention rows cover the clip's real frames only.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    memory = model.encode(features.to(device), frame_mask.to(device))
    search = _Search(model, vocabulary, memory, frame_mask.sum(dim=1).tolist(), config)
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
    """(id, hypotheses) of every clip of `batches` (see dataset.clip_batches)."""
    for ids, features, frame_mask in batches:
        hypotheses = generate(model, vocabulary, features, frame_mask, config)
        yield from zip(ids, hypotheses, strict=True)


def predict(
    model: CaptionModel,
    vocabulary: Vocabulary,
    store: FeatureStore,
    ids: Sequence[str],
    config: DecodeConfig,
    sources: Sequence[str] | None = None,
) -> dict[str, Hypothesis]:
    """The best hypothesis per clip; `sources` are the clips whose features are shown instead."""
    batches = clip_batches(store, ids if sources is None else sources)
    beams = caption_clips(model, vocabulary, batches, config)
    return {i: hypotheses[0] for i, (_, hypotheses) in zip(ids, beams, strict=True)}


def captions_of(hypotheses: Mapping[str, Hypothesis]) -> dict[str, str]:
    """{id: caption}, as scores want them."""
    return {i: hypothesis.caption for i, hypothesis in hypotheses.items()}


class _Search:
    """The beams of the clips that are not done; t is the number of words so far."""

    def __init__(
        self,
        model: CaptionModel,
        vocabulary: Vocabulary,
        memory: Memory,
        lengths: list[int],
        config: DecodeConfig,
    ) -> None:
        self.model, self.vocabulary, self.memory, self.config = model, vocabulary, memory, config
        self.frames = lengths  # of each clip
        (B, T), K, device = memory.mask.shape, config.beam_size, memory.mask.device
        self.ended: list[list[Hypothesis]] = [[] for _ in range(B)]
        self.unfinished: list[list[Hypothesis]] = [[] for _ in range(B)]
        self.clips = torch.arange(B, device=device)  # which clips the rows below belong to
        self.state = model.decoder.start(memory, K)
        self.words = torch.full((B, K, 1), START, device=device)  # (B, K, t + 1)
        self.log_probs = torch.zeros(B, K, 0, device=device)  # (B, K, t), of each word
        self.attention = torch.zeros(B, K, 0, T, device=device)  # (B, K, t, T)
        # All beams start alike: only the first may be continued at the first step.
        self.total = torch.full((B, K), float("-inf"), device=device)  # (B, K) log-probability
        self.total[:, 0] = 0

    def step(self) -> None:
        """One more word for every beam."""
        decoder, (B, K) = self.model.decoder, self.total.shape
        read = decoder.read(self.words[:, :, -1])
        self.state, context, weights = decoder.step(read, self.state, self.memory)
        log_probs = decoder.logits(self.state[0], context).float().log_softmax(dim=-1)  # (B, K, V)
        log_probs[:, :, NEVER] = float("-inf")
        if self.words.shape[2] == 1:  # a caption has at least one word
            log_probs[:, :, END] = float("-inf")
        if self.config.no_repeat_ngram is not None:
            self._block_repeats(log_probs, self.config.no_repeat_ngram)
        self.attention = torch.cat([self.attention, weights.float()[:, :, None]], dim=2)

        # Each beam yields at most one <end>, so the top 2K hold at least K unfinished beams.
        V = log_probs.shape[2]
        candidates = (self.total[:, :, None] + log_probs).flatten(1)  # (B, K · V)
        best, index = candidates.topk(min(2 * K, candidates.shape[1]), dim=1)
        beams, words = index.div(V, rounding_mode="floor"), index % V  # (B, 2K) each
        is_end = (words == END) & best.isfinite()
        is_end[:, K:] = False  # as in greedy search, an end must be among the K best
        for row, candidate in is_end.nonzero().tolist():
            beam = int(beams[row, candidate])
            self._record(row, beam, log_probs[row, beam, END])

        unfinished = (words != END).float() * 2 + torch.linspace(1, 0, words.shape[1]).to(best)
        chosen = unfinished.topk(K, dim=1).indices  # the first K that do not end, best first
        beams, words, self.total = (x.gather(1, chosen) for x in (beams, words, best))
        self.total = self.total.masked_fill(words == END, float("-inf"))
        rows = torch.arange(B, device=beams.device)[:, None]  # (B, 1) against beams (B, K)
        self.words = torch.cat([self.words[rows, beams], words[:, :, None]], dim=2)
        last = log_probs[rows, beams, words][:, :, None]
        self.log_probs = torch.cat([self.log_probs[rows, beams], last], dim=2)
        self.attention = self.attention[rows, beams]
        self.state = (self.state[0][rows, beams], self.state[1][rows, beams])
        self._leave()

    def _leave(self) -> None:
        """Take clips that are done out of the batch."""
        K, length = self.total.shape[1], self.words.shape[2] - 1
        best = (self.total.max(dim=1).values / length**self.config.length_penalty).tolist()
        stay = []
        for row, clip in enumerate(self.clips.tolist()):
            scores = sorted((h.score for h in self.ended[clip]), reverse=True)[:K]
            # Five poor endings must not cut off a good caption that is still being written.
            settled = len(scores) == K and scores[-1] >= best[row]
            if length < self.config.max_length and not settled and best[row] > float("-inf"):
                stay.append(row)
                continue
            for beam in self.total[row].isfinite().nonzero().flatten().tolist():
                self._record(row, beam)
        if len(stay) < len(self.clips):
            self.clips, self.total, self.words = (
                self.clips[stay],
                self.total[stay],
                self.words[stay],
            )
            self.log_probs, self.attention = self.log_probs[stay], self.attention[stay]
            self.state = (self.state[0][stay], self.state[1][stay])
            self.memory = Memory(*(part[stay] for part in self.memory))

    def _record(self, row: int, beam: int, end_log_prob: Tensor | None = None) -> None:
        """Keep a caption: ended with this log-probability, or unfinished."""
        clip, log_probs = int(self.clips[row]), self.log_probs[row, beam].cpu()
        attention = self.attention[row, beam, :, : self.frames[clip]].cpu().numpy()
        words = [self.vocabulary.words[i] for i in self.words[row, beam, 1:].tolist()]
        total = log_probs.sum() + (0 if end_log_prob is None else end_log_prob.cpu())
        length = max(1, len(words) + (end_log_prob is not None))
        kept = self.unfinished if end_log_prob is None else self.ended
        kept[clip].append(
            Hypothesis(
                words=words,
                log_prob=float(total),
                score=float(total) / length**self.config.length_penalty,
                word_log_probs=log_probs.numpy(),
                attention=attention[: len(words)],
                end_attention=None if end_log_prob is None else attention[-1],
            )
        )

    def _block_repeats(self, log_probs: Tensor, size: int) -> None:
        """Forbid every word that would repeat an n-gram of its own caption."""
        for row, beams in enumerate(self.words[:, :, 1:].tolist()):
            for beam, words in enumerate(beams):
                tail = words[len(words) - size + 1 :]
                for start in range(len(words) - size + 1):
                    if words[start : start + size - 1] == tail:
                        log_probs[row, beam, words[start + size - 1]] = float("-inf")

    def results(self) -> list[list[Hypothesis]]:
        """The hypotheses of every clip, ended ones first, best first."""
        ranked = []
        for groups in zip(self.ended, self.unfinished, strict=True):
            ordered = [h for group in groups for h in sorted(group, key=lambda h: -h.score)]
            ranked.append(ordered[: self.config.beam_size])
        return ranked
