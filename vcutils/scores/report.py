"""Predictions, and scores with their protocol beside the lines they must be read against.

Those are a floor (the best constant caption), retrieval (the caption of the most similar training clip), a control (the
model on other clips' features) and a human line (one reference against the others).
"""

import json
import platform
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis, captions_of
from vcutils.runtime.files import holding, note, write_text
from vcutils.runtime.sampler import derange
from vcutils.runtime.store import backbone_of
from vcutils.scores.baselines import constant_caption, human_line, nearest_captions, training_captions
from vcutils.scores.coco import References, Scores
from vcutils.scores.diagnostics import diagnose
from vcutils.scores.runs import Run, sister_runs


def evaluate(run: Run, split: str = "test", decode: DecodeConfig | None = None) -> dict[str, Any]:
    """Caption a split, score it beside its baselines, and write predictions_<split>.json and metrics_<split>.json.

    Returns {"scores", "protocol", "baselines", "diagnostics", "seeds"}; scores are fractions under the COCO toolkit's
    names, diagnostics those of `diagnostics.MEASURES`, "seeds" mean and sd of the scores over this run and its sisters,
    if any. Raises UserError for a split unknown or in evaluation.
    """
    data, ids, decode = run.data, ids_of(run, split), decode or run.decode
    references = {i: list(data.captions[i]) for i in ids}
    with holding(run.folder, f"evaluate-{split}"):
        runs = [run, *sister_runs(run)]
        hypotheses = [each.predict(ids, decode) for each in runs]
        shuffled = run.predict(ids, decode, sources=derange(ids, seed=0))
        scorer, training = References(references), training_captions(data)
        scores = [scorer.score(captions_of(h)) for h in hypotheses]
        lines = {
            "constant caption": (dict.fromkeys(ids, constant_caption(training)), scorer),
            "nearest training clip": (nearest_captions(data, ids), scorer),
            "other clips' features": (captions_of(shuffled), scorer),
        }
        diagnosed = {"this model": (captions_of(hypotheses[0]), scorer), "constant caption": lines["constant caption"]}
        if human := human_line(references):
            lines["one reference against the others"] = diagnosed["one reference"] = human
        result = {
            "scores": scores[0],
            "protocol": protocol(runs, split, decode),
            "baselines": {name: judge.score(captions) for name, (captions, judge) in lines.items()},
            "diagnostics": diagnose(run, hypotheses[0], diagnosed, training),
            "seeds": over_seeds(scores) if len(runs) > 1 else None,
        }
        predictions = {}
        for i, h in hypotheses[0].items():
            predictions[i] = {"caption": h.caption, "words": h.words, "log_prob": round(h.log_prob, 4)}
        for name, content in (("predictions", predictions), ("metrics", result)):
            write_text(run.folder / f"{name}_{split}.json", json.dumps(content, ensure_ascii=False, indent=1))
        line = ", ".join(f"{name} {value:.3f}" for name, value in scores[0].items() if value is not None)
        note(run.folder.parent.parent, f"evaluate {run.folder.name}, {split}, {len(ids)} clips: {line}")
    return result


def ids_of(run: Run, split: str) -> list[str]:
    """The clips of a split. Raises UserError for an unknown one."""
    if split not in run.data.splits:
        raise UserError(f"unknown split {split!r}: take one of {', '.join(run.data.splits)}")
    return list(run.data.splits[split])


def over_seeds(scores: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """{"mean": …, "sd": …} of several runs' scores (sample standard deviation, None for a single run)."""
    values = {n: [float(s[n] or 0.0) for s in scores] for n, v in scores[0].items() if v is not None}
    return {
        "mean": {n: float(np.mean(v)) for n, v in values.items()},
        "sd": {n: float(np.std(v, ddof=1)) if len(v) > 1 else None for n, v in values.items()},
    }


def min_mean_max(counts: Sequence[int]) -> dict[str, float]:
    """The least, the mean and the most of some counts."""
    return {"min": min(counts), "mean": round(float(np.mean(counts)), 1), "max": max(counts)}


def protocol(runs: Sequence[Run], split: str, decode: DecodeConfig) -> dict[str, Any]:
    """What a reader must know to compare the scores with others'; `runs` differ in their seed alone."""
    run = runs[0]
    ids = run.data.splits[split]
    packages = ("torch", "timm", "numpy", "pycocoevalcap", "opencv-python", "accelerate")
    return {
        "corpus": run.data.root.name,
        "split": split,
        "clips": len(ids),
        "references per clip": min_mean_max([len(run.data.captions[i]) for i in ids]),
        "tokenizer": "PTB as in the COCO caption evaluation, lower-cased, punctuation removed",
        "beam": decode.beam_size,
        "length penalty": decode.length_penalty,
        "max words": decode.max_length,
        "checkpoint": "best CIDEr of generated captions on the validation split",
        "features": backbone_of(run.config["features"]),
        "frames per clip": min_mean_max([len(run.data.store[i]) for i in ids]),
        "seeds": [r.config["train"]["seed"] for r in runs],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def score_table(result: Mapping[str, Any], model_name: str = "this model") -> str:
    """Scores × 100 and baselines as aligned text, the model's row first."""
    rows = {model_name: result["scores"]}
    if result.get("seeds"):
        rows[f"mean of {len(result['protocol']['seeds'])} seeds"] = result["seeds"]["mean"]
        rows["± standard deviation"] = result["seeds"]["sd"]
    return aligned(rows | result["baselines"])


def aligned(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of scores × 100 as aligned text; scores that the first row lacks are left out."""
    names = [n for n, v in next(iter(rows.values())).items() if v is not None]
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{n:>9}" for n in names)]
    for row, scores in rows.items():
        cells = ["–" if scores.get(n) is None else f"{100 * scores[n]:.1f}" for n in names]
        lines.append(f"{row:<{width}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def plot_examples(run: Run, predictions: Mapping[str, Hypothesis], ids: Sequence[str], frames: int = 4) -> Figure:
    """The caption and all references of each clip beside its frames; equal references are shown once, with a count."""
    texts = []  # of each clip: its caption, its references
    for i in ids:
        counted = [f"– {caption}{f' (×{n})' * (n > 1)}" for caption, n in Counter(run.data.captions[i]).items()]
        references = "\n".join(textwrap.fill(line, 62, subsequent_indent="   ") for line in counted)
        texts.append((textwrap.fill(predictions[i].caption, 62), references))
    heights = [max(1.5, 0.16 * ("".join(text).count("\n") + 4)) for text in texts]  # inches
    figure = Figure(figsize=(11.7, sum(heights)), layout="constrained")
    ratios: dict[str, Any] = {"width_ratios": [1] * frames + [2.9], "height_ratios": heights}
    grid = figure.subplots(len(ids), frames + 1, squeeze=False, **ratios)
    for row, i, (caption, references), height in zip(grid, ids, texts, heights, strict=True):
        pictures = run.thumbnails(i) or []
        for axes in row:
            axes.set_axis_off()
            axes.set_anchor("N")
        for axes, frame in zip(row, np.linspace(0, len(pictures) - 1, frames if pictures else 0), strict=False):
            axes.imshow(pictures[int(frame)])
        row[-1].text(0, 1, caption, va="top", fontsize=9, parse_math=False, weight="bold")
        row[-1].text(
            0, 1 - 0.16 * (caption.count("\n") + 1.5) / height, references, va="top", fontsize=9, parse_math=False
        )
    return figure
