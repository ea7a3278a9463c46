"""The interactive view: step through a caption's words and see which frames each one was read from."""

import io
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np

from vcutils.attention import check_alignment, plot_filmstrip
from vcutils.decode import Hypothesis


def explore_words(
    hypothesis: Hypothesis, timestamps: Sequence[float], thumbnails: Sequence[np.ndarray], title: str = ""
) -> widgets.VBox:
    """Play button and slider over the words of one caption, the frames lit by their attention weights (L, T).

    All pictures are rendered beforehand and linked in the browser: a step needs no kernel. Raises ValueError when
    words, weights, timestamps and thumbnails do not fit together.
    """
    check_alignment(hypothesis.words, hypothesis.attention, timestamps)
    if len(thumbnails) != len(timestamps):
        raise ValueError(f"{len(thumbnails)} thumbnails do not fit {len(timestamps)} frames")
    last = len(hypothesis.words) - 1
    pictures = [
        widgets.Image(value=_png(plot_filmstrip(word, row, timestamps, thumbnails)), format="png")
        for word, row in zip(hypothesis.words, hypothesis.attention, strict=True)
    ]
    for picture in pictures:
        picture.layout.max_width = "100%"
    stack = widgets.Stack(pictures, selected_index=0)
    slider = widgets.IntSlider(min=0, max=last, description="word", continuous_update=True)
    play = widgets.Play(min=0, max=last, interval=900)
    widgets.jslink((play, "value"), (slider, "value"))
    widgets.jslink((slider, "value"), (stack, "selected_index"))
    heading = widgets.Label(f"{title}: {hypothesis.caption}" if title else hypothesis.caption)
    return widgets.VBox([heading, widgets.HBox([play, slider]), stack])


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
