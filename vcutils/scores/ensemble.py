"""Several trained models that say each word together: the mean of their probabilities, and of their attention."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vcutils.config import UserError
from vcutils.model import CaptionModel, Memory, State
from vcutils.scores.runs import Run


def together(runs: Sequence[Run]) -> Run:
    """The first run with a model of all of them. Raises UserError for runs that cannot say a word together."""
    first = runs[0]
    for other in runs[1:]:
        needs = {
            "the same vocabulary": other.vocabulary.words == first.vocabulary.words,
            "the same features": other.data.store.folder == first.data.store.folder,
            "the same frames": other.model.config.max_frames == first.model.config.max_frames,
        }
        if missing := [need for need, is_met in needs.items() if not is_met]:
            raise UserError(f"{first.folder.name} and {other.folder.name} would need {' and '.join(missing)}")
    return replace(first, model=Ensemble([run.model for run in runs]).eval())


class Ensemble(CaptionModel):
    """Models of one vocabulary and the same features as one model; its states are theirs side by side."""

    def __init__(self, models: Sequence[CaptionModel]) -> None:
        nn.Module.__init__(self)
        self.models: Any = nn.ModuleList(models)

    @property
    def decoder(self) -> "Ensemble":  # type: ignore
        """Where `decode` looks for `start` and `step`."""
        return self

    def encode(self, features: Tensor, frame_mask: Tensor) -> "Memories":  # type: ignore
        """Every model's memory of features (B, T, D) with frame_mask (B, T)."""
        return Memories(*(part for model in self.models for part in model.encode(features, frame_mask)))

    def start(self, memory: "Memories", count: int) -> State:
        """See `model.Decoder.start`."""
        return _joined([m.decoder.start(own, count) for m, own in zip(self.models, memory.each, strict=True)])

    def step(self, words: Tensor, state: State, memory: "Memories") -> tuple[State, Tensor, Tensor]:
        """See `model.Decoder.step`; the logits are logarithms of summed probabilities."""
        sizes = [model.config.decoder_dim for model in self.models]
        states = zip(*(part.split(sizes, dim=-1) for part in state), strict=True)
        parts = zip(self.models, states, memory.each, strict=True)
        after, logits, weights = zip(*(m.decoder.step(words, own, seen) for m, own, seen in parts), strict=True)
        log_probs = torch.stack([each.float().log_softmax(dim=-1) for each in logits])
        return _joined(after), log_probs.logsumexp(dim=0), torch.stack(weights).mean(dim=0)


class Memories(tuple):
    """Several models' memories, field after field, so that `runtime.beams` can leave out clips that are done."""

    def __new__(cls, *parts: Tensor) -> "Memories":
        """As a named tuple is made: of its fields."""
        return super().__new__(cls, parts)

    @property
    def each(self) -> list[Memory]:
        """Each model's own memory."""
        size = len(Memory._fields)
        return [Memory(*self[start : start + size]) for start in range(0, len(self), size)]

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True on frames that exist."""
        return self.each[0].mask


def _joined(states: Sequence[State]) -> State:
    h, c = (torch.cat(parts, dim=-1) for parts in zip(*states, strict=True))
    return h, c
