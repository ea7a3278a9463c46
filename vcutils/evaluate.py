"""Predictions, scores with their protocol, and the lines they must be read against.

A score means nothing alone: beside the model's row always stand a floor (the best constant caption), retrieval (the
caption of the most similar training clip), a control (the model on other clips' features) and a human line (one
reference against the others).
"""

import json
import platform
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from vcutils import metrics
from vcutils.checkpoint import check_features, load_model, run_config
from vcutils.config import DecodeConfig, ExtractConfig, UserError, from_dict, holding, note, write_text
from vcutils.corpus import EXCLUDE, leave_out, open_corpus
from vcutils.dataset import CaptionData, clip_batches, derange, load_data
from vcutils.decode import Hypothesis, caption_clips, generate
from vcutils.extract import Backbone, clip_features, load_backbone, pick_device
from vcutils.model import CaptionModel
from vcutils.store import FeatureStore, backbone_of, said
from vcutils.video import frames_at
from vcutils.vocab import Vocabulary, tokenize

# BLEU-4, METEOR, ROUGE-L, CIDEr × 100 on MSVD's official test split as published: to see where one stands, not a
# contest, since features and tokenization differ from row to row.
PUBLISHED_MSVD = {
    "GIT-L (Wang et al. 2022)": (75.8, 48.7, 85.5, 162.9),
    "SwinBERT (Lin et al. 2022)": (58.2, 41.3, 77.5, 120.6),
    "RecNet local, Inception-v4 (Wang et al. 2018)": (52.3, 34.1, 69.8, 80.3),
    "temporal attention, ResNet-152 (X-modaler)": (51.0, 33.5, 70.0, 77.2),
    "SA-LSTM, ResNet-152 (hobincar, GitHub)": (50.8, 33.3, 69.8, 79.5),
    "MP-LSTM, no attention, ResNet-152 (X-modaler)": (48.1, 32.4, 68.1, 73.1),
    "one human caption against the others (670 clips, pycocoevalcap)": (57.1, 42.3, 76.2, 121.0),
}
VERSIONED = ("torch", "timm", "numpy", "pycocoevalcap", "opencv-python", "accelerate")


@dataclass(frozen=True)
class Run:
    """A trained run with everything needed to use it."""

    folder: Path
    config: dict[str, Any]  # config.json
    model: CaptionModel
    vocabulary: Vocabulary
    data: CaptionData

    @property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """Rows of the feature store's manifest by id; empty for features that the corpus brought."""
        return self.data.store.manifest

    @property
    def extract(self) -> ExtractConfig:
        """How the features were made: as their manifest tells, else as the run's settings say."""
        settings = from_dict(ExtractConfig, self.config["extract"])
        known = self.data.store.extracted or {}
        frames = known.get("num_frames", settings.num_frames)
        return replace(settings, backbone=backbone_of(self.data.store.folder), num_frames=frames)

    @property
    def num_frames(self) -> int:
        """Frames per clip that the features were sampled with."""
        return self.extract.num_frames

    @property
    def decode(self) -> DecodeConfig:
        """How this run generates captions unless told otherwise."""
        return from_dict(DecodeConfig, self.config["decode"])

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone that the features came from. Raises UserError when it cannot be had with the same weights."""
        backbone = load_backbone(backbone_of(self.data.store.folder), next(self.model.parameters()).device)
        known = self.data.store.extracted or {}
        here = {"backbone": backbone.name, "weights": backbone.weights, "num_frames": self.num_frames}
        if known and known != here:
            raise UserError(
                f"{self.folder}: trained on {said(known)}, at hand is {said(here)}; extract and train again"
            )
        return backbone


def load_run(folder: Path, checkpoint: str = "best", device: torch.device | None = None) -> Run:
    """Open data/<corpus>/runs/<name>. Raises UserError that names what is missing."""
    folder = Path(folder).resolve()
    config = run_config(folder)
    model, vocabulary, about = load_model(folder / checkpoint, device or pick_device())
    corpus = leave_out(open_corpus(Path(config["corpus_dir"])), folder.parent.parent / EXCLUDE)
    features = ExtractConfig(backbone=backbone_of(config["features"]), own_features=False)
    data = load_data(corpus, folder.parent.parent, features)
    check_features(about, data.store, folder / checkpoint)
    return Run(folder, config, model, vocabulary, data)


def sister_runs(run: Run) -> list[Run]:
    """Finished runs beside this one with the same settings but for the seed, by seed: see `train --seeds`."""

    def settings(config: dict[str, Any]) -> str:
        train = {k: v for k, v in config["train"].items() if k not in ("seed", "max_minutes")}
        return json.dumps([train, config["model"], config["features"]], sort_keys=True)

    found: dict[int, Run] = {}
    for path in sorted(run.folder.parent.glob("*/config.json")):
        config = run_config(path.parent)
        seed = config["train"]["seed"]
        known = seed in found or seed == run.config["train"]["seed"]
        if not known and (path.parent / "best").is_dir() and settings(config) == settings(run.config):
            model, vocabulary, about = load_model(path.parent / "best", next(run.model.parameters()).device)
            here = run.data.store.extracted
            if about.get("extracted", here) == here:  # else trained before the features were extracted anew
                found[seed] = Run(path.parent, config, model, vocabulary, run.data)
    return [found[seed] for seed in sorted(found)]


def predict(
    model: CaptionModel,
    vocabulary: Vocabulary,
    store: FeatureStore,
    ids: Sequence[str],
    decode: DecodeConfig,
    sources: Sequence[str] | None = None,
    batch_size: int = 64,
) -> dict[str, Hypothesis]:
    """The best hypothesis per clip; `sources` names the clips whose features are shown instead of the clips' own."""
    batches = clip_batches(store, sources or ids, batch_size)
    found = caption_clips(model, vocabulary, batches, decode)
    return {i: hypotheses[0] for i, (_, hypotheses) in zip(ids, found, strict=True)}


def caption_files(
    run: Run, clips: Sequence[Path], decode: DecodeConfig
) -> Iterator[tuple[Path, tuple[Hypothesis, list[float]] | UserError]]:
    """The best hypothesis and the frames' times (s) for any video file, or why a file cannot be captioned.

    Raises UserError when the run's features did not come from a backbone that can be loaded.
    """
    backbone = run.backbone
    for clip in clips:
        try:
            features, frames = clip_features(backbone, clip, run.extract)
        except UserError as error:
            yield clip, error
            continue
        mask = torch.ones(1, len(features), dtype=torch.bool, device=backbone.device)
        found = generate(run.model, run.vocabulary, features[None].to(backbone.device), mask, decode)
        yield clip, (found[0][0], frames.timestamps)


def evaluate(run: Run, split: str = "test", decode: DecodeConfig | None = None) -> dict[str, Any]:
    """Caption a split, score it beside its baselines, and write predictions_<split>.json and metrics_<split>.json.

    Returns {"scores", "protocol", "baselines", "seeds"}; scores are fractions under the COCO toolkit's names. "seeds"
    holds mean and standard deviation over this run and its sisters, where there are some. Raises UserError for an
    unknown split, or one that another process evaluates.
    """
    if split not in run.data.splits:
        raise UserError(f"unknown split {split!r}: take one of {', '.join(run.data.splits)}")
    with holding(run.folder, f"evaluate-{split}"):
        predictions, result = _measure(run, split, decode or run.decode)
        write_text(run.folder / f"predictions_{split}.json", json.dumps(predictions, ensure_ascii=False, indent=1))
        write_text(run.folder / f"metrics_{split}.json", json.dumps(result, ensure_ascii=False, indent=1))
        scores = ", ".join(f"{name} {value:.3f}" for name, value in result["scores"].items() if value is not None)
        note(run.folder.parent.parent, f"evaluate {run.folder.name}, {split}, {len(predictions)} clips: {scores}")
    return result


def _measure(run: Run, split: str, decode: DecodeConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What predictions_<split>.json and metrics_<split>.json hold."""
    data, ids = run.data, list(run.data.splits[split])
    references = {i: list(data.captions[i]) for i in ids}
    hypotheses = predict(run.model, run.vocabulary, data.store, ids, decode)
    captions = {i: h.caption for i, h in hypotheses.items()}
    shuffled = predict(run.model, run.vocabulary, data.store, ids, decode, sources=derange(ids, seed=0))
    scorer = metrics.References(references)
    floor = constant_caption(data)
    baselines: dict[str, Any] = {
        "constant caption": scorer.score({i: floor for i in ids}),
        "nearest training clip": scorer.score(nearest_captions(data, ids)),
        "other clips' features": scorer.score({i: h.caption for i, h in shuffled.items()}),
    }
    if (human := human_line(references)) is not None:
        baselines["one reference against the others"] = human
    sisters = sister_runs(run)
    scores = scorer.score(captions)
    result = {
        "scores": scores,
        "protocol": protocol([run, *sisters], split, decode),
        "baselines": baselines,
        "seeds": over_seeds([scores, *(scorer.score(_captions(sister, ids, decode)) for sister in sisters)]),
    }
    predictions = {
        i: {"caption": h.caption, "words": h.words, "log_prob": round(h.log_prob, 4)} for i, h in hypotheses.items()
    }
    return predictions, result


def _captions(run: Run, ids: Sequence[str], decode: DecodeConfig) -> dict[str, str]:
    found = predict(run.model, run.vocabulary, run.data.store, ids, decode)
    return {i: h.caption for i, h in found.items()}


def over_seeds(scores: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float]] | None:
    """{"mean": …, "sd": …} of several runs' scores (sample standard deviation); None for a single run."""
    if len(scores) < 2:
        return None
    values = {n: [float(s[n] or 0.0) for s in scores] for n, v in scores[0].items() if v is not None}
    return {
        "mean": {n: float(np.mean(v)) for n, v in values.items()},
        "sd": {n: float(np.std(v, ddof=1)) for n, v in values.items()},
    }


def protocol(runs: Sequence[Run], split: str, decode: DecodeConfig) -> dict[str, Any]:
    """What a reader must know to compare the scores with others'; `runs` differ in their seed alone."""
    run = runs[0]
    counts = [len(run.data.captions[i]) for i in run.data.splits[split]]
    return {
        "corpus": run.data.root.name,
        "split": split,
        "clips": len(counts),
        "references per clip": {
            "min": min(counts),
            "mean": round(float(np.mean(counts)), 1),
            "max": max(counts),
        },
        "tokenizer": "PTB as in the COCO caption evaluation, lower-cased, punctuation removed",
        "beam": decode.beam_size,
        "length penalty": decode.length_penalty,
        "max words": decode.max_length,
        "checkpoint": "best CIDEr of generated captions on the validation split",
        "features": backbone_of(run.config["features"]),
        "frames per clip": run.num_frames,
        "seeds": [r.config["train"]["seed"] for r in runs],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
    }


def constant_caption(data: CaptionData, candidates: int = 100) -> str:
    """The one caption that, said of every training clip, has the highest BLEU-4 there: the floor.

    The candidates are the most frequent captions of the training split; nothing of the other splits is read.
    """
    train = data.splits["train"]
    counts = Counter(" ".join(tokenize(c)) for i in train for c in data.captions[i])
    sample = list(train)[:: max(1, len(train) // 200)]
    scorer = metrics.References({i: list(data.captions[i]) for i in sample})
    frequent = [caption for caption, _ in counts.most_common(candidates)]
    return max(frequent, key=lambda c: scorer.score({i: c for i in sample}, ("Bleu",))["Bleu_4"] or 0.0)


def nearest_captions(data: CaptionData, ids: Sequence[str]) -> dict[str, str]:
    """For each clip a caption of the training clip whose mean feature is most similar (cosine)."""

    def means(names: Sequence[str]) -> np.ndarray:
        rows = np.stack([data.store[i].astype(np.float32).mean(axis=0) for i in names])
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    train = list(data.splits["train"])
    nearest = (means(ids) @ means(train).T).argmax(axis=1)
    return {i: typical_caption(data.captions[train[j]]) for i, j in zip(ids, nearest, strict=True)}


def typical_caption(captions: Sequence[str]) -> str:
    """The caption that shares the most words with the clip's other captions (Jaccard, first of equals)."""
    bags = [set(tokenize(c)) for c in captions]
    overlap = [sum(len(a & b) / max(1, len(a | b)) for b in bags) for a in bags]
    return captions[int(np.argmax(overlap))]


def human_line(references: Mapping[str, Sequence[str]], seed: int = 0) -> dict[str, float | None] | None:
    """Scores of one reference per clip, drawn by `seed`, against the clip's others; None when clips have only one."""
    several = {i: list(refs) for i, refs in references.items() if len(refs) > 1}
    if not several:
        return None
    generator = np.random.default_rng(seed)
    drawn = {i: refs.pop(int(generator.integers(len(refs)))) for i, refs in several.items()}
    return metrics.score(drawn, several)


def score_table(result: Mapping[str, Any], model_name: str = "this model") -> str:
    """Scores × 100 and baselines as aligned text, the model's row first."""
    names = [n for n, v in result["scores"].items() if v is not None]
    rows = {model_name: result["scores"]}
    if result.get("seeds"):
        rows[f"mean of {len(result['protocol']['seeds'])} seeds"] = result["seeds"]["mean"]
        rows["± standard deviation"] = result["seeds"]["sd"]
    rows |= result["baselines"]
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{n:>9}" for n in names)]
    lines += [f"{row:<{width}}" + "".join(_cell(scores.get(n)) for n in names) for row, scores in rows.items()]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'–' if value is None else format(100 * value, '.1f'):>9}"


def thumbnails(run: Run, video_id: str, height: int = 90) -> list[np.ndarray] | None:
    """The sampled frames of a clip, RGB and scaled to `height` pixels; None when only features are at hand."""
    row = run.manifest.get(video_id)
    clip = open_corpus(run.data.root).clips.get(video_id)
    if row is None or clip is None or "indices" not in row:
        return None
    return frames_at(clip, row["indices"], height)


def timestamps(run: Run, video_id: str) -> list[float]:
    """Seconds of each sampled frame (T,); frame numbers where the corpus brought features without times."""
    row = run.manifest.get(video_id, {})
    return row.get("timestamps") or [float(t) for t in range(len(run.data.store[video_id]))]


def plot_examples(run: Run, predictions: Mapping[str, Hypothesis], ids: Sequence[str], frames: int = 4) -> Figure:
    """Predicted and reference captions beside frames of each clip."""
    figure = Figure(figsize=(11, 1.75 * len(ids)), layout="constrained")
    grid = figure.subplots(len(ids), frames + 1, squeeze=False, width_ratios=[1] * frames + [2.4])
    for row, video_id in zip(grid, ids, strict=True):
        pictures = thumbnails(run, video_id) or []
        for axes, place in zip(row, np.linspace(0, max(0, len(pictures) - 1), frames).astype(int), strict=False):
            axes.set_axis_off()
            if pictures:
                axes.imshow(pictures[place])
        row[-1].set_axis_off()
        references = [textwrap.fill(r, 58) for r in run.data.captions[video_id][:2]]
        said = textwrap.fill(predictions[video_id].caption, 58)
        text = "\n".join([f"model: {said}", *(f"reference: {r}" for r in references)])
        row[-1].text(0, 0.5, text, va="center", fontsize=9, parse_math=False)
    return figure
