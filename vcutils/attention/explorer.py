"""The explorer in a notebook: step through a caption's words, see the frames that each attends to, hide frames.

view.js draws it, here as a widget whose traits hold what the page of `save` (page.py) has as JSON. A clip's pictures
are sent once. Slider and Play are linked to the view in the browser, so that a step needs no kernel.
"""

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import torch
from traitlets import Bool, Dict, Int, List, Unicode

from vcutils.attention import page
from vcutils.attention.measures import need
from vcutils.config import DecodeConfig, UserError
from vcutils.corpus import VIDEO_SUFFIXES
from vcutils.scores.coco import References
from vcutils.scores.runs import Run

MOST_BEAMS = 10
UPLOAD_LIMIT = 10  # MB; Jupyter cuts the connection at messages of 10 MiB


class AttentionView(anywidget.AnyWidget):
    """view.js as a widget, by itself for notebooks that know no ipywidgets: with `controls` it needs none beside it."""

    _esm, _css = page.script(), Path(__file__).with_name("view.css")
    clip, captions = Dict().tag(sync=True), Dict().tag(sync=True)
    word = Int(0).tag(sync=True)  # this and the next two follow every step
    last = Int(0).tag(sync=True)  # number of the caption's last word
    beam = Int(0).tag(sync=True)
    needs: Any = List().tag(sync=True)  # of the captions; they follow them, since they take longer
    hide = List(Int()).tag(sync=True)  # the frames that someone wants hidden
    start = List(Unicode()).tag(sync=True)  # the words that someone wants the captions to begin with
    size = Int(1).tag(sync=True)  # the beam size that someone wants
    rows: Any = List().tag(sync=True)  # clips in a table above it
    opened = Unicode("").tag(sync=True)  # the clip of that table that someone opened
    message = Unicode("").tag(sync=True)
    controls = Bool(False).tag(sync=True)


class Explorer(widgets.VBox):
    """The live explorer on a run, opened at one clip (default: the first of the test split, where there is one).

    Bad clips give a message in the widget. `save` writes what is shown as one HTML page.
    """

    def __init__(self, run: Run, video_id: str | None = None, decode: DecodeConfig | None = None) -> None:
        self.run, self.decode = run, decode or run.decode
        self.original = self.shown = page.View("", ())  # the clip with all its frames; without those that are hidden
        self._features = torch.empty(0)
        ids = list(dict.fromkeys([*([video_id] if video_id else []), *run.data.splits["test"]]))
        self.clip = widgets.Dropdown(options=ids, description="clip")
        self.upload = widgets.FileUpload(accept=",".join(VIDEO_SUFFIXES), description="own clip")
        self.play, self.slider = widgets.Play(interval=1000), widgets.IntSlider(description="word", readout=False)
        self.view = AttentionView()
        for control in (self.play, self.slider):
            widgets.jsdlink((self.view, "last"), (control, "max"))
            widgets.jslink((self.view, "word"), (control, "value"))
        rows = [self.clip, self.upload], [self.play, self.slider]
        super().__init__([*map(widgets.HBox, rows), self.view])
        self.clip.observe(self._on_clip, "value")
        self.upload.observe(self._on_upload, "value")
        self.view.observe(self._on_ask, ["hide", "start", "size"])
        self.view.observe(self._on_clip, "opened")
        self.view.message = "upload a clip of yours, or give its path to show_file(path) in a cell"
        if ids:
            self.show_clip(ids[0])

    def __repr__(self) -> str:
        """What stands in place of the widget where no kernel runs."""
        return "Attention explorer: run this notebook in JupyterLab, Notebook 7 or VS Code to use it."

    def show_clip(self, video_id: str) -> None:
        """Show a clip of the run's corpus."""
        self._open(lambda: page.corpus_clip(self.run, video_id))

    def show_file(self, path: Path | str, title: str | None = None) -> None:
        """Show any video file; the way for files that are too large to upload."""
        self.view.message = "reading the clip …"
        self._open(lambda: page.file_clip(self.run, Path(path), title), path, title)

    def list_clips(self, split: str = "test") -> None:
        """Show the clips of a split in a table that can be sorted and searched; a click opens one."""
        run, ids = self.run, list(self.run.data.splits[split])
        hypotheses = run.predict(ids, self.decode)
        ciders = References({i: list(run.data.captions[i]) for i in ids}).cider(
            [(i, hypotheses[i].caption) for i in ids]
        )
        rows = []
        for i, cider in zip(ids, ciders, strict=True):
            features, best = np.asarray(run.data.store[i], np.float32), hypotheses[i]
            needs = need(run.model, run.vocabulary, features, [best.words])[0].need if len(features) > 1 else None
            rows.append(page.table_row(i, best, needs, cider))
        self.view.rows = rows

    def hide_frames(self, frames: Collection[int]) -> None:
        """Hide exactly these frames, and caption the clip again without them."""
        self._ask(frames, self.shown.start, self.decode)

    def _ask(self, frames: Collection[int], start: Sequence[str], decode: DecodeConfig) -> None:
        """Caption the clip again: without these frames, from these words on, with this search."""
        hidden = {*map(int, frames)} & {*range(len(self.original.timestamps))}
        if len(hidden) == len(self.original.timestamps):
            return self._show(message="At least one frame must stay visible: the caption below is the one from before.")
        try:
            self.shown = page.with_captions(self.run, self.original, self._features, decode, hidden, start)
        except UserError as error:
            return self._show(message=str(error))
        self.decode = decode
        self._show(captions=page.caption_content(self.shown), beam=0, message="")
        self.shown = self._with_needs(self.shown)

    def _with_needs(self, view: page.View) -> page.View:
        """The view with its needs, which are sent behind its captions: those are waited for."""
        view = page.with_needs(self.run, view, self._features)
        self.view.needs = list(view.needs)
        return view

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
        for opened in (page.corpus_clip(self.run, i) for i in more):
            views.append(page.with_needs(self.run, page.with_captions(self.run, *opened, self.decode), opened[1]))
        return page.save_page(path, views)

    def _open(self, read: Callable[[], Any], path: Path | str = "", title: str | None = None) -> None:
        try:
            view, features = read()
            shown = page.with_captions(self.run, view, features, self.decode)
        except UserError as error:
            return self._fail(str(error).replace(f"{path}: ", f"{title or path}: ") if path else str(error))
        if path:
            self.clip.value = None  # so that every clip of the corpus can be chosen again
        self.original, self.shown, self._features = shown, shown, features
        captions = page.caption_content(shown)
        self._show(clip=page.clip_content(view), captions=captions, word=0, beam=0, message="")
        self.original = self.shown = self._with_needs(shown)

    def _show(self, **traits: Any) -> None:
        """Set traits of the view in one message: what belongs together must arrive together."""
        asked = {"hide": sorted(self.shown.hidden), "start": list(self.shown.start), "size": self.decode.beam_size}
        if "captions" in traits:
            asked["needs"] = []
        with self.view.hold_sync(), self.view.hold_trait_notifications():
            for name, value in {**traits, **asked}.items():
                setattr(self.view, name, value)

    def _on_clip(self, change: Any) -> None:
        if change.new:
            self.show_clip(change.new)

    def _on_ask(self, _: Any) -> None:
        view, size = self.view, max(1, min(self.view.size, MOST_BEAMS))
        shown = self.shown.hidden, self.shown.start, self.decode.beam_size
        if (set(view.hide), tuple(view.start), view.size) != shown:
            self._ask(view.hide, view.start, replace(self.decode, beam_size=size))

    def _on_upload(self, change: Any) -> None:
        """Show what was uploaded: {name: {"content"}} in ipywidgets 7, ({"name", "content"}, …) in ipywidgets 8."""
        files = change.new.items() if isinstance(change.new, dict) else ((file["name"], file) for file in change.new)
        for name, file in files:
            megabytes, suffix = len(file["content"]) / 1e6, Path(name).suffix.lower()
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
        self.view.message = f"{reason}. Still shown: {self.original.title}" if self.shown.beams else reason


def side_by_side(first: Explorer, *others: Explorer) -> widgets.HBox:
    """Explorers beside each other on one word slider: two runs, seeds or clips."""
    for other in others:
        widgets.jslink((first.view, "word"), (other.view, "word"))
    return widgets.HBox([first, *others])


explore = Explorer  # what the notebooks call: explore(run, video_id)
