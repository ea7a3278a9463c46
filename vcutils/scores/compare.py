"""Several runs side by side, with paired intervals; what they say together, word by word or by agreement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis, captions_of
from vcutils.model import CaptionModel, Memory, State
from vcutils.runtime.files import note, write_text
from vcutils.scores.baselines import constant_caption, human_line, training_captions
from vcutils.scores.coco import METRICS, References, Scores
from vcutils.scores.report import aligned, ids_of, over_seeds, protocol
from vcutils.scores.runs import Run

TOGETHER, AGREED = "all together", "most agreed"  # each word said together; the caption most like the others


def compare(runs: Sequence[Run], split: str = "test", decode: DecodeConfig | None = None) -> dict[str, Any]:
    """Score runs on the same clips, alone and as an ensemble; writes comparison_<split>.json beside the runs.

    Returns {"scores": {run: scores}, "differences": {run: {"CIDEr", "interval", "verdict"}}, "ensemble", "protocol",
    "baselines", "seeds"}. Differences are against the first run; "ensemble" says why there is none, or is None; "seeds"
    are mean and sd of the runs. Raises UserError for runs of one name and for runs that are not of the same clips and
    captions.
    """
    first, decode = runs[0], decode or runs[0].decode
    ids, named = ids_of(first, split), {run.folder.name: run for run in runs}
    references = {i: list(first.data.captions[i]) for i in ids}
    if len(named) < len(runs):
        raise UserError(f"{', '.join(run.folder.name for run in runs)}: two runs of one name; name each run once")
    for other in runs[1:]:
        if other.data.root != first.data.root or ids_of(other, split) != ids:
            raise UserError(f"{other.folder}: not of the same {split} clips as {first.folder}; compare runs of one")
    problem = None
    try:
        named[TOGETHER] = together(runs)
    except UserError as error:
        problem = str(error)
    hypotheses = {name: run.predict(ids, decode) for name, run in named.items()}
    captions = {name: captions_of(of_run) for name, of_run in hypotheses.items()}
    captions[AGREED] = agreed([hypotheses[run.folder.name] for run in runs])
    scorer, scores, ciders = References(references), {}, {}
    for name, of_name in captions.items():
        both = scorer.score_both(of_name, METRICS)
        scores[name] = {metric: corpus for metric, (corpus, _) in both.items()}
        ciders[name] = np.array(both["CIDEr"][1])
    base, *others = captions
    constant = constant_caption(training_captions(first.data))
    baselines: dict[str, Scores] = {"constant caption": scorer.score(dict.fromkeys(ids, constant))}
    if human := human_line(references):
        baselines["one reference against the others"] = human[1].score(human[0])
    result = {
        "scores": scores,
        "differences": {name: difference(ciders[name] - ciders[base], name, base) for name in others},
        "ensemble": problem,
        "protocol": protocol(runs, split, decode),
        "baselines": baselines,
        "seeds": over_seeds([scores[run.folder.name] for run in runs]),
    }
    write_text(first.folder.parent.parent / f"comparison_{split}.json", json.dumps(result, indent=1))
    note(first.folder.parent.parent, f"evaluate {', '.join(named)}, {split}, {len(ids)} clips")
    return result


def difference(gains: np.ndarray, name: str, base: str) -> dict[str, Any]:
    """Mean gain (n,) in CIDEr per clip of one run over another, its 95 % interval, and what that means in words.

    Paired bootstrap over clips (Koehn 2004): both runs are scored on the same drawn clips, so that clips that are easy
    for both do not widen the interval.
    """
    mean, low, high = mean_with_interval(gains.tolist(), list(map(str, range(len(gains)))))
    verdict = f"{name} and {base} cannot be told apart by these {len(gains)} clips"
    if low > 0 or high < 0:
        verdict = f"{name} is {'better' if low > 0 else 'worse'} than {base}"
    return {"CIDEr": mean, "interval": [low, high], "verdict": verdict}


def mean_with_interval(values: Sequence[float], clips: Sequence[str]) -> tuple[float, float, float]:
    """Mean over words and its 95 % bootstrap interval, (mean, low, high).

    Whole clips are drawn, since the words of one caption lean on each other: words drawn one by one would give an
    interval that is too narrow (Cameron, Gelbach & Miller 2008).
    """
    names, groups = np.unique(np.asarray(clips), return_inverse=True)
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    picks = np.random.default_rng(0).integers(len(names), size=(2000, len(names)))
    low, high = np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)


def comparison_table(result: dict[str, Any]) -> str:
    """The rows, × 100, then a line for each difference."""
    seeds = {"mean of the runs": result["seeds"]["mean"], "± standard deviation": result["seeds"]["sd"]}
    lines = [aligned(result["scores"] | seeds | result["baselines"]), ""]
    for row in result["differences"].values():
        low, high = (100 * value for value in row["interval"])
        lines.append(f"CIDEr × 100: {100 * row['CIDEr']:+.1f} [{low:+.1f}, {high:+.1f}]  {row['verdict']}")
    lines.append("Intervals (95 %) are over clips; another seed of the same settings may differ by as much.")
    if result["ensemble"]:
        lines.append(f"not all together: {result['ensemble']}")
    return "\n".join(lines)


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


class Memories(NamedTuple):
    """What several models may look at."""

    each: tuple[Memory, ...]
    mask: Tensor  # (B, T) bool, True on frames that exist for some model


class Ensemble(CaptionModel):
    """Models of one vocabulary and the same features as one model; its memory and its state hold theirs."""

    def __init__(self, models: Sequence[CaptionModel]) -> None:
        nn.Module.__init__(self)
        self.models: Any = nn.ModuleList(models)

    @property
    def decoder(self) -> Any:  # type: ignore
        """Where `decode` looks for `start` and `step`."""
        return self

    def encode(self, features: Tensor, frame_mask: Tensor) -> Memories:  # type: ignore
        """Every model's memory of features (B, T, D) with frame_mask (B, T)."""
        each = tuple(model.encode(features, frame_mask) for model in self.models)
        return Memories(each, each[0].mask)

    def start(self, memory: Memories, count: int) -> State:
        """See `model.Decoder.start`."""
        return tuple(model.decoder.start(own, count) for model, own in zip(self.models, memory.each, strict=True))

    def step(self, words: Tensor, state: State, memory: Memories) -> tuple[State, Tensor, Tensor]:
        """See `model.Decoder.step`; the logits are logarithms of summed probabilities."""
        parts = zip(self.models, state, memory.each, strict=True)
        after, logits, weights = zip(*(m.decoder.step(words, *of_model) for m, *of_model in parts), strict=True)
        log_probs = torch.stack([each.float().log_softmax(dim=-1) for each in logits])
        return after, log_probs.logsumexp(dim=0), torch.stack(weights).mean(dim=0)
