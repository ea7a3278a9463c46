"""Figures of attention: heatmap, film strip, spread of each word, importance of each frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle

from vcutils.attention.measures import check_alignment, entropy, frame_importance, top_frames
from vcutils.runtime.files import replacing


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
            axes.add_patch(Rectangle((0, 0), width - 1, height - 1, fill=False, ec="tab:orange", lw=3))
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


def number_tile(number: int) -> np.ndarray:
    """A stand-in (120, 160, 3) for a frame whose picture is not at hand."""
    tile = np.full((120, 160, 3), (96, 108, 124), np.uint8)
    (width, height), _ = cv2.getTextSize(str(number), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 3)
    place = ((160 - width) // 2, (120 + height) // 2)
    return cv2.putText(tile, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 1.6, (232, 236, 240), 3, cv2.LINE_AA)
