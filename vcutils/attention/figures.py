"""Figures of attention: heatmap, film strip, importance of each frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle

from vcutils.attention.measures import check_alignment
from vcutils.runtime.capture import cv2
from vcutils.runtime.files import replacing

COLUMNS = 8  # frames per row of a film strip
Pictures = Sequence[np.ndarray] | None  # RGB, any size; None where only features are at hand


def plot_heatmap(
    words: Sequence[str],
    weights: np.ndarray,
    timestamps: Sequence[float],
    thumbnails: Pictures = None,
    title: str = "",
    timed: bool = True,
) -> Figure:
    """Word × frame heatmap of weights (L, T) with the frames and their times along its axis.

    `timed=False` where no times are known: `timestamps` then only count the frames.
    """
    check_alignment(words, weights, timestamps)
    count = len(timestamps)
    figure = Figure(figsize=(max(5, 0.62 * count + 1.6), 0.34 * len(words) + 1.7), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(words)), words, parse_math=False)
    labels = [f"{round(t, 2):g}" if timed else str(number) for number, t in enumerate(timestamps, 1)]
    axes.set_xticks(range(count), labels, fontsize=8)
    axes.set_xlabel("time of the frame (s)" if timed else "frame")
    axes.plot(weights.argmax(axis=1), range(len(words)), "o", mfc="none", mec="white", ms=7, label="strongest frame")
    figure.colorbar(image, ax=axes, label="attention weight", fraction=0.03, pad=0.01)
    _title_over_pictures(axes, title, range(count), thumbnails)
    return figure


def plot_filmstrip(
    word: str, row: np.ndarray, timestamps: Sequence[float], thumbnails: Sequence[np.ndarray], timed: bool = True
) -> Figure:
    """The clip's frames, each as bright as its weight (T,) for one word, the strongest framed in orange."""
    rows = -(-len(row) // COLUMNS)
    figure = Figure(figsize=(1.35 * COLUMNS, 1.3 * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for frame, (axes, weight, picture) in enumerate(zip(grid, row, thumbnails, strict=False)):
        axes.imshow((picture * (0.2 + 0.8 * weight / row.max())).astype(np.uint8))
        label = f"{round(timestamps[frame], 2):g} s" if timed else f"frame {frame + 1}"
        axes.set_title(f"{label}  {weight:.0%}", fontsize=8)
        if frame == row.argmax():
            height, width = picture.shape[:2]
            axes.add_patch(Rectangle((0, 0), width - 1, height - 1, fill=False, ec="tab:orange", lw=3))
    figure.suptitle(f"“{word}”", fontsize=12, parse_math=False)
    return figure


def plot_importance(
    weights: np.ndarray, timestamps: Sequence[float], thumbnails: Pictures = None, top: int = 5, timed: bool = True
) -> Figure:
    """Mean attention of the frames over the words (L, T) against time, the `top` strongest coloured and shown above."""
    importance = weights.mean(axis=0)
    strongest = sorted(np.argsort(-importance, kind="stable")[:top].tolist())
    times = [timestamps[frame] for frame in strongest]
    width = 0.8 * min(np.diff(timestamps), default=1.0)
    figure = Figure(figsize=(9, 2.8 if thumbnails else 2.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(timestamps, importance, width, color="lightgrey")
    axes.bar(times, importance[strongest], width)
    axes.set(xlabel="time (s)" if timed else "frame, counted from 0", ylabel="mean attention")
    pictures = [thumbnails[frame] for frame in strongest] if thumbnails else None
    _title_over_pictures(axes, "mean attention over the words of the caption", times, pictures)
    return figure


def _title_over_pictures(axes: Axes, title: str, positions: Sequence[float], pictures: Pictures) -> None:
    """A title, and between it and the axes small pictures (RGB) centred at x positions in data units."""
    axes.set_title(title, fontsize=10, pad=44 if pictures else 6, parse_math=False)
    above: Any = {"xycoords": ("data", "axes fraction"), "box_alignment": (0.5, -0.08), "frameon": False}
    for x, picture in zip(positions, pictures or (), strict=False):
        box = OffsetImage(picture, zoom=42 / picture.shape[1] * (72 / axes.figure.dpi))
        axes.add_artist(AnnotationBbox(box, (x, 1.0), **above))


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG for slides, as SVG and PDF for print; `path` is without suffix.

    Text stays text in SVG and PDF, and equal figures give equal files.
    """
    paths = []
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": path.name}):
        for suffix, dateless in (("png", {}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            paths.append(path.with_name(f"{path.name}.{suffix}"))
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary, dpi=150, metadata=dateless)
    return paths


def number_tile(number: int) -> np.ndarray:
    """A stand-in (120, 160, 3) for a frame whose picture is not at hand."""
    tile = np.full((120, 160, 3), (96, 108, 124), np.uint8)
    (width, height), _ = cv2.getTextSize(str(number), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 3)
    corner = ((160 - width) // 2, (120 + height) // 2)
    return cv2.putText(tile, str(number), corner, cv2.FONT_HERSHEY_SIMPLEX, 1.6, (232, 236, 240), 3, cv2.LINE_AA)
