"""The interactive view: step through a caption's words, see the frames each was said from, and hide frames to test it.

Live in a notebook it is made of ipywidgets. A frame's picture is sent once per clip; a word is a few style rules over
those pictures, shown by a Stack that is linked to the slider in the browser, so that a step needs no kernel. The page
that `save` writes (see page.py) shows the same without any kernel.
"""

import difflib
import tempfile
import unicodedata
import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from jinja2 import Environment, PackageLoader

from vcutils.attention.page import View, corpus_clip, file_clip, jpeg_uri, save_page, with_captions
from vcutils.config import DecodeConfig, UserError
from vcutils.corpus import VIDEO_SUFFIXES
from vcutils.decode import Hypothesis
from vcutils.scores.runs import Run

UPLOAD_LIMIT = 10  # MB; Jupyter cuts the connection at messages of 10 MiB
HINT = """<div class="vc-quiet">The brighter a frame, the larger its attention weight for this word: evidence of where
the model looked, not proof of why it said the word. Test it: click frames to hide them, and see what it says without
them.</div>"""


def percent(share: float) -> str:
    """A share as people read it: 62 %, never a false 0 %."""
    return "<1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


_templates = Environment(loader=PackageLoader("vcutils.attention", ""), autoescape=True, trim_blocks=True)
_templates.filters.update(percent=percent, exp=np.exp)


def live_html(part: str, *values: Any) -> str:
    """One part of the explorer as HTML: a macro of page.live.html."""
    return str(getattr(_templates.get_template("page.live.html").module, part)(*values))


def explore(run: Run, video_id: str | None = None) -> "Explorer":
    """The live explorer on a run, opened at one clip (default: the first of the test split)."""
    return Explorer(run, video_id)


class Explorer(widgets.VBox):
    """Choose or upload a clip, step through its captions, hide frames and see what the model says without them.

    Bad clips give a message in the widget. `save` writes what is shown as one HTML page.
    """

    def __init__(self, run: Run, video_id: str | None = None, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.run, self.decode = run, decode or run.decode
        self.original = View("", ())  # the clip with all its frames
        self.shown = self.original  # the same, without the frames that are hidden
        self._features = torch.empty(0)
        self._quiet = False  # True while the program itself sets many widgets at once
        self._scope = f"vcx-{uuid.uuid4().hex[:8]}"  # keeps the style rules of two explorers apart
        ids = list(dict.fromkeys([*([video_id] if video_id else []), *run.data.splits["test"]]))
        self.clip = widgets.Dropdown(options=ids, description="clip")
        self.upload = widgets.FileUpload(accept=",".join(VIDEO_SUFFIXES), description="own clip")
        self.message, self.pictures, self.effect, self.heatmap = (widgets.HTML() for _ in range(4))
        self.player = widgets.VBox()  # holds the Player of the caption that is shown
        self.frames = widgets.Box().add_class("vc-strip")
        self.span = widgets.SelectionRangeSlider(options=[("", 0)], description="from – to", continuous_update=False)
        self.hide = widgets.Button(description="hide this time", icon="eye-slash")
        self.show_all = widgets.Button(description="show all", icon="eye")
        self.beams = widgets.RadioButtons(layout={"width": "auto"})
        self.children = [
            self.pictures, widgets.HBox([self.clip, self.upload]), self.message, self.player,
            widgets.HTML(HINT), self.frames,
            widgets.HBox([self.span, self.hide, self.show_all]), self.effect, self.heatmap,
            widgets.HTML('<div class="vc-quiet">Captions the model weighed, with their scores:</div>'), self.beams,
        ]  # fmt: skip
        self.add_class("vcx").add_class(self._scope)
        self.clip.observe(self._on_clip, "value")
        self.upload.observe(self._on_upload, "value")
        self.beams.observe(self._show_caption, "index")
        self.hide.on_click(self._on_hide)
        self.show_all.on_click(lambda _: self.hide_frames(()))
        self.show_clip(self.clip.value)

    def __repr__(self) -> str:
        """What stands in place of the widget where no kernel runs."""
        return "Attention explorer: run this notebook in JupyterLab, Notebook 7 or VS Code to use it."

    @property
    def hidden(self) -> set[int]:
        """The frames that are hidden now."""
        return {i for i, frame in enumerate(self.frames.children) if frame.value}

    def show_clip(self, video_id: str) -> None:
        """Show a clip of the run's corpus."""
        try:
            self._open(*corpus_clip(self.run, video_id))
        except UserError as error:
            self._fail(str(error))

    def show_file(self, path: Path | str, title: str | None = None) -> None:
        """Show any video file; the way for files that are too large to upload."""
        self._say("reading the clip …")
        try:
            view, features = file_clip(self.run, Path(path), title)
            self.clip.value = None  # so that every clip of the corpus can be chosen again
            self._open(view, features)
        except UserError as error:
            self._fail(str(error).replace(f"{path}: ", f"{title or path}: "))

    def hide_frames(self, frames: Collection[int]) -> None:
        """Hide exactly these frames, and caption the clip again without them."""
        self._quiet = True
        for i, frame in enumerate(self.frames.children):
            frame.value = i in frames
        self._quiet = False
        self._recaption()

    def save(self, path: Path | str, video_ids: Sequence[str] = ()) -> Path:
        """Write the clip that is shown as one HTML page, beside it the same without the hidden frames, if any are.

        `video_ids` adds more clips of the corpus to the page. Raises UserError when nothing is shown, or an id is
        not known.
        """
        if not self.shown.beams:
            raise UserError("the explorer shows no clip yet: nothing to save")
        views = [self.original]
        if count := len(self.shown.hidden):
            views.append(replace(self.shown, title=f"{self.shown.title} ({count} frames hidden)"))
        more = [i for i in video_ids if i != self.original.title]
        views += [with_captions(self.run, *corpus_clip(self.run, i), self.decode) for i in more]
        return save_page(path, views)

    def _open(self, view: View, features: torch.Tensor) -> None:
        self.original = self.shown = view = with_captions(self.run, view, features, self.decode)
        self._features = features
        self.pictures.value = live_html(
            "clip", view, self._scope, [jpeg_uri(picture, 360) for picture in view.pictures]
        )
        old, buttons = self.frames.children, []
        for i, label in enumerate(view.labels):
            button = widgets.ToggleButton(description=label, tooltip="hide or show").add_class("vc-frame")
            button.add_class(f"vc-p{i}").observe(self._recaption, "value")  # the class brings the picture
            buttons.append(button)
        self.frames.children = buttons
        for button in old:
            _close(button)
        self.span.options = [(label, i) for i, label in enumerate(view.labels)]
        self.span.index = (0, len(view.labels) - 1)
        self._show_beams()

    def _recaption(self, _: Any = None) -> None:
        if self._quiet:
            return
        if len(self.hidden) == len(self.frames.children):
            self._say("At least one frame must stay visible: the caption below is the one from before.")
        else:
            self.shown = with_captions(self.run, self.original, self._features, self.decode, self.hidden)
            self._show_beams()

    def _show_beams(self) -> None:
        self._quiet = True
        self.beams.options = [(f"{h.score:.2f} · {h.caption}", i) for i, h in enumerate(self.shown.beams)]
        self.beams.index = 0
        self._quiet = False
        self._say(self.original.note or ("" if self.clip.value else self.original.title))
        self._show_caption()

    def _show_caption(self, _: Any = None) -> None:
        if self._quiet:
            return
        hypothesis = self.shown.beams[self.beams.index]
        old = self.player.children
        word = min(old[0].slider.value, len(hypothesis.words) - 1) if old else 0
        self.player.children = [Player(self.shown, hypothesis, self._scope, word)]
        for player in old:
            _close(player)
        self.heatmap.value = live_html("heatmap", self.shown, hypothesis)
        before, after = self.original.beams[0], self.shown.beams[0]
        changes = difflib.SequenceMatcher(None, before.words, after.words, autojunk=False).get_opcodes()
        self.effect.value = live_html("effect", before, after, changes) if self.shown.hidden else ""

    def _on_clip(self, _: Any) -> None:
        if self.clip.value:
            self.show_clip(self.clip.value)

    def _on_hide(self, _: Any) -> None:
        first, last = self.span.index
        self.hide_frames(self.hidden.union(range(first, last + 1)))

    def _on_upload(self, _: Any) -> None:
        for file in self.upload.value:
            name, megabytes, suffix = file["name"], len(file["content"]) / 1e6, Path(file["name"]).suffix.lower()
            if suffix not in VIDEO_SUFFIXES:
                self._fail(f"{name}: not a video file; the explorer reads {', '.join(VIDEO_SUFFIXES)}")
            elif megabytes > UPLOAD_LIMIT:
                self._fail(f"{name}: {megabytes:.0f} MB, the limit is {UPLOAD_LIMIT}; use show_file(path) in a cell")
            else:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"clip{suffix}"  # never the sender's file name
                    path.write_bytes(file["content"])
                    self.show_file(path, name)

    def _fail(self, reason: str) -> None:
        self._say(f"{reason}. Still shown: {self.original.title}" if self.shown.beams else reason)

    def _say(self, text: str) -> None:
        self.message.value = live_html("message", text)


class Player(widgets.VBox):
    """The words of one caption as buttons, Play and slider, and the frames that each word was said from."""

    def __init__(self, view: View, hypothesis: Hypothesis, scope: str, word: int = 0) -> None:
        texts, last = hypothesis.words, len(hypothesis.words) - 1
        # ipywidgets finds a button by its label: a word that comes again is told apart by invisible characters.
        labels = [text + "\u200b" * texts[:i].count(text) for i, text in enumerate(texts)]
        self.words = widgets.ToggleButtons(options=labels, index=word, style={"button_width": "auto"})
        self.words.add_class("vc-words").add_class("vc-rtl" if _right_to_left(hypothesis.caption) else "vc-ltr")
        self.play = widgets.Play(min=0, max=last, value=word, interval=1000)
        self.slider = widgets.IntSlider(min=0, max=last, value=word, description="word", readout=False)
        looks = [widgets.HTML(live_html("word", view, hypothesis, i, scope)) for i in range(last + 1)]
        self.stack = widgets.Stack(looks, selected_index=word)
        self.stack.layout.min_height = "225px"  # the page below must not jump while a word is exchanged
        followers = ((self.play, "value"), (self.words, "index"), (self.stack, "selected_index"))
        self.links = [widgets.jslink((self.slider, "value"), follower) for follower in followers]
        super().__init__([self.words, widgets.HBox([self.play, self.slider]), self.stack])


def _close(widget: Any) -> None:
    """Free a widget with all its parts, in the kernel and in the browser."""
    parts = [*getattr(widget, "links", ()), *getattr(widget, "children", ())]
    for part in (*parts, getattr(widget, "layout", None), getattr(widget, "style", None)):
        if part is not None:
            _close(part)
    widget.close()


def _right_to_left(text: str) -> bool:
    strong = (unicodedata.bidirectional(c) for c in text)
    return next((kind != "L" for kind in strong if kind in ("L", "R", "AL")), False)
