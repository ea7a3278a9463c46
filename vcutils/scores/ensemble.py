"""What several trained models say together: word by word, with mean probabilities and attention, or by agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vcutils.config import UserError
from vcutils.decode import Hypothesis
from vcutils.model import CaptionModel, Memory, State
from vcutils.scores.coco import References
from vcutils.scores.runs import Run


def together(runs: Sequence[Run]) -> Run:
    """The first run with a model of all of them. Raises UserError for runs that cannot say a word together."""
    first = runs[0]
    for other in runs[1:]:
        needs = {
            "the same vocabulary": other.vocabulary.words == first.vocabulary.words,
            "the same features": other.data.store.folder == first.data.store.folder,
            "the same frames": other.model.config.max_frames == first.model.config.max_frames,
            "the same attention": other.model.decoder.is_matched == first.model.decoder.is_matched,
        }
        if missing := [need for need, is_met in needs.items() if not is_met]:
            raise UserError(f"{first.folder.name} and {other.folder.name} would need {' and '.join(missing)}")
    return replace(first, model=Ensemble([run.model for run in runs]).eval())


def agreed(hypotheses: Sequence[Mapping[str, Hypothesis]]) -> dict[str, str]:
    """For each clip the caption, of all beams of all runs, that is most like the others by CIDEr.

    Consensus re-ranking (Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning").
    """
    beams = {i: [h.caption for of_run in hypotheses for h in (of_run[i], *of_run[i].others)] for i in hypotheses[0]}
    others = {f"{i} {k}": c[:k] + c[k + 1 :] for i, c in beams.items() for k in range(len(c))}
    candidates = [caption for captions in beams.values() for caption in captions]
    likeness = iter(References(others).cider(list(zip(others, candidates, strict=True))))
    return {i: max(captions, key=lambda _: next(likeness)) for i, captions in beams.items()}


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
        parts = zip(self.models, memory.each, strict=True)
        return tuple(part for model, own in parts for part in model.decoder.start(own, count))

    def step(self, words: Tensor, state: State, memory: "Memories") -> tuple[State, Tensor, Tensor]:
        """See `model.Decoder.step`; the logits are logarithms of summed probabilities."""
        number = len(state) // len(self.models)
        states = [state[start : start + number] for start in range(0, len(state), number)]
        parts = zip(self.models, states, memory.each, strict=True)
        after, logits, weights = zip(*(m.decoder.step(words, own, seen) for m, own, seen in parts), strict=True)
        log_probs = torch.stack([each.float().log_softmax(dim=-1) for each in logits])
        state = tuple(part for own in after for part in own)
        return state, log_probs.logsumexp(dim=0), torch.stack(weights).mean(dim=0)


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
