"""Which frames the model looked at for each word: analysis and figures.

Attention is evidence of where information was read, not proof of why a word was said (Jain & Wallace 2019;
Wiegreffe & Pinter 2019); notebook 05 shows the checks that tell how far it can be trusted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from vcutils.config import UserError, replacing
from vcutils.corpus import read_json
from vcutils.decode import Hypothesis


@dataclass(frozen=True)
class WordView:
    """One word and the frame it leans on most."""

    word: str
    frame: int  # index among the sampled frames
    seconds: float  # that frame's time in the clip
    weight: float  # its share of the attention, 0 to 1
    entropy: float  # of the whole row, as a share of the maximum: 0 = one frame, 1 = all frames alike


def word_views(hypothesis: Hypothesis, timestamps: Sequence[float]) -> list[WordView]:
    """The strongest frame of every word of a hypothesis; `timestamps` (T,) in seconds.

    Raises ValueError when words, attention rows and timestamps do not fit together.
    """
    check_alignment(hypothesis.words, hypothesis.attention, timestamps)
    views = []
    for word, row in zip(hypothesis.words, hypothesis.attention, strict=True):
        frame = int(row.argmax())
        views.append(WordView(word, frame, timestamps[frame], float(row[frame]), float(entropy(row))))
    return views


def check_alignment(words: Sequence[str], weights: np.ndarray, timestamps: Sequence[float]) -> None:
    """Raise ValueError unless weights are (L, T) for L words and T timestamps and each row sums to 1."""
    if weights.shape != (len(words), len(timestamps)):
        raise ValueError(f"attention {weights.shape} does not fit {len(words)} words and {len(timestamps)} frames")
    if not np.allclose(weights.sum(axis=1), 1, atol=1e-3):
        raise ValueError("attention rows must sum to 1")


def entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy of attention rows (..., T) as a share of its maximum log T; 0 for a clip of one frame."""
    count = weights.shape[-1]
    if count == 1:
        return np.zeros(weights.shape[:-1])
    safe = np.where(weights > 0, weights, 1.0)
    return -(weights * np.log(safe)).sum(axis=-1) / np.log(count)


def frame_importance(weights: np.ndarray) -> np.ndarray:
    """Mean attention (T,) that each frame gets over the words (L, T); sums to 1."""
    return weights.mean(axis=0)


def top_frames(weights: np.ndarray, count: int = 5) -> list[int]:
    """The frames that matter most to the whole caption, strongest first."""
    return np.argsort(-frame_importance(weights), kind="stable")[:count].tolist()


def attention_dict(hypothesis: Hypothesis, timestamps: Sequence[float]) -> dict[str, Any]:
    """One caption with its attention, JSON-ready: weights (L, T) over the frames at `timestamps`, <end>'s row apart."""
    return {
        "caption": hypothesis.caption,
        "words": hypothesis.words,
        "log_prob": hypothesis.log_prob,
        "word_log_probs": hypothesis.word_log_probs.tolist(),
        "timestamps": list(timestamps),
        "weights": hypothesis.attention.tolist(),
        "end_weights": None if hypothesis.end_attention is None else hypothesis.end_attention.tolist(),
    }


def read_events(path: Path) -> dict[str, dict[str, Any]]:
    """events.json of a corpus with ground truth: {id: {"duration": s, "events": [{kind, words, start, end}]}}.

    Raises UserError, naming the clip, for anything else.
    """
    try:
        events = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: this corpus has no ground truth for attention") from error
    if not isinstance(events, dict):
        raise UserError(f"{path}: must map ids to their events, holds {type(events).__name__}")
    for video_id, clip in events.items():
        try:
            for event in clip["events"]:
                if not float(event["start"]) < float(event["end"]):
                    raise ValueError("an event ends before it starts")
                "".join([event["kind"], *event["words"]])  # nothing but text
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {video_id}: {type(error).__name__}: {error}; see sample.events") from error
    return events


@dataclass(frozen=True)
class Grounding:
    """One generated word whose true time is known."""

    video_id: str
    word: str
    kind: str  # scene, motion or order
    hit: bool  # the strongest frame lies inside a true interval
    mass: float  # attention inside
    chance: float  # share of the clip's frames inside: what blind attention would hit


def ground(
    hypotheses: Mapping[str, Hypothesis],
    timestamps: Mapping[str, Sequence[float]],
    events: Mapping[str, dict],
) -> list[Grounding]:
    """Pointing game (Zhang et al. 2018) in time: every generated word that `events` knows, against its intervals.

    Clips of one scene are left out: there every frame is right. So are clips that `events` does not know.
    """
    return [
        found
        for video_id, hypothesis in hypotheses.items()
        if video_id in events
        for found in _ground_clip(video_id, hypothesis, np.asarray(timestamps[video_id]), events[video_id]["events"])
    ]


def _ground_clip(video_id: str, hypothesis: Hypothesis, times: np.ndarray, events: list[dict]) -> Iterator[Grounding]:
    if sum(event["kind"] == "scene" for event in events) < 2:
        return
    for word, row in zip(hypothesis.words, hypothesis.attention, strict=True):
        inside = np.zeros(len(times), bool)
        kind = ""
        for event in events:
            if word in event["words"]:
                kind = event["kind"]
                inside |= (times >= event["start"]) & (times < event["end"])
        if kind and not inside.all():
            yield Grounding(
                video_id,
                word,
                kind,
                bool(inside[row.argmax()]),
                float(row[inside].sum()),
                float(inside.mean()),
            )


def grounding_table(found: Sequence[Grounding]) -> list[dict[str, Any]]:
    """Per kind of word: how many, share of hits, mean attention inside the true interval, chance level."""
    rows = []
    for kind in dict.fromkeys(g.kind for g in found):
        group = [g for g in found if g.kind == kind]
        rows.append(
            {
                "kind": kind,
                "words": len(group),
                "pointing": float(np.mean([g.hit for g in group])),
                "mass": float(np.mean([g.mass for g in group])),
                "chance": float(np.mean([g.chance for g in group])),
            }
        )
    return rows


def plot_heatmap(
    words: Sequence[str],
    weights: np.ndarray,
    timestamps: Sequence[float],
    thumbnails: Sequence[np.ndarray] | None = None,
    title: str = "",
    timed: bool = True,
) -> Figure:
    """Word × frame heatmap of weights (L, T) with the frames (RGB, any size) and their times along its axis.

    `timed=False` where no times are known: `timestamps` then only count the frames.
    """
    check_alignment(words, weights, timestamps)
    count = len(timestamps)
    figure = Figure(figsize=(max(5, 0.62 * count + 1.6), 0.34 * len(words) + 1.7), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(words)), words, parse_math=False)
    axes.set_xticks(range(count), [f"{t:.1f}" if timed else str(i + 1) for i, t in enumerate(timestamps)], fontsize=8)
    axes.set_xlabel("time of the frame (s)" if timed else "frame")
    axes.plot(weights.argmax(axis=1), range(len(words)), "o", mfc="none", mec="white", ms=7, label="strongest frame")
    figure.colorbar(image, ax=axes, label="attention weight", fraction=0.03, pad=0.01)
    axes.set_title(title, fontsize=10, pad=6 if thumbnails is None else 44, parse_math=False)
    _put_above(axes, range(count), thumbnails or ())
    return figure


def plot_filmstrip(
    word: str,
    row: np.ndarray,
    timestamps: Sequence[float],
    thumbnails: Sequence[np.ndarray],
    columns: int = 8,
    timed: bool = True,
) -> Figure:
    """The clip's frames, each as bright as its weight (T,) for one word, the strongest framed in orange."""
    rows = -(-len(row) // columns)
    figure = Figure(figsize=(1.35 * columns, 1.3 * rows + 0.35), layout="constrained")
    strongest = int(row.argmax())
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place >= len(row):
            continue
        share = float(row[place] / row[strongest])
        axes.imshow((thumbnails[place] * (0.2 + 0.8 * share)).astype(np.uint8))
        label = f"{timestamps[place]:.1f} s" if timed else f"frame {place + 1}"
        axes.set_title(f"{label}  {row[place]:.0%}", fontsize=8)
        if place == strongest:
            height, width = thumbnails[place].shape[:2]
            axes.add_patch(_outline(width, height))
    figure.suptitle(f"“{word}”", fontsize=12, parse_math=False)
    return figure


def plot_entropy(words: Sequence[str], weights: np.ndarray) -> Figure:
    """How spread out each word's attention (L, T) is: 0 = all on one frame, 1 = over all frames alike."""
    figure = Figure(figsize=(max(4, 0.7 * len(words)), 2.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(words)), entropy(weights))
    axes.axhline(1, color="grey", lw=0.8, ls="--")
    axes.set_xticks(range(len(words)), words, rotation=30, ha="right", parse_math=False)
    axes.set(ylim=(0, 1.05), ylabel="entropy / maximum", title="spread of each word's attention")
    return figure


def plot_importance(
    weights: np.ndarray,
    timestamps: Sequence[float],
    thumbnails: Sequence[np.ndarray] | None = None,
    top: int = 5,
    timed: bool = True,
) -> Figure:
    """Mean attention of the frames over the words (L, T) against time, the `top` strongest coloured and shown above."""
    importance, best = frame_importance(weights), sorted(top_frames(weights, top))
    width = 0.8 * min(np.diff(timestamps), default=1.0)
    figure = Figure(figsize=(9, 2.2 if thumbnails is None else 2.8), layout="constrained")
    axes = figure.subplots()
    axes.bar(timestamps, importance, width, color="lightgrey")
    axes.bar([timestamps[i] for i in best], importance[best], width)
    axes.set(xlabel="time (s)" if timed else "frame, counted from 0", ylabel="mean attention")
    axes.set_title("what the whole caption rests on", fontsize=10, pad=6 if thumbnails is None else 44)
    if thumbnails is not None:
        _put_above(axes, [timestamps[i] for i in best], [thumbnails[i] for i in best])
    return figure


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = ("png", "svg", "pdf")) -> list[Path]:
    """Write a figure in several formats, `path` without suffix: PNG for slides, SVG and PDF for print.

    Text stays text in SVG and PDF, and equal figures give equal files.
    """
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in formats]
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": path.name}):
        for target in paths:
            dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(target.suffix)
            with replacing(target) as temporary:
                figure.savefig(temporary, dpi=150, metadata=dateless)
    return paths


def _put_above(axes: Axes, places: Sequence[float], pictures: Sequence[np.ndarray]) -> None:
    """Small pictures (RGB) above the axes, at places in data units."""
    for x, picture in zip(places, pictures, strict=False):
        zoom = 42 / picture.shape[1] * (72 / axes.figure.dpi)
        box = OffsetImage(picture, zoom=zoom)
        above: Any = {"xycoords": ("data", "axes fraction"), "box_alignment": (0.5, -0.08), "frameon": False}
        axes.add_artist(AnnotationBbox(box, (x, 1.0), **above))


def _outline(width: int, height: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), width - 1, height - 1, fill=False, ec="tab:orange", lw=3)
