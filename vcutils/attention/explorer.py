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
import torch
from traitlets import Bool, Dict, Int, List, Unicode

from vcutils.attention import page
from vcutils.attention.embed import caption_content, clip_content
from vcutils.attention.views import View, corpus_clip, file_clip, table_rows, with_captions, with_ciders, with_needs
from vcutils.config import DecodeConfig, UserError
from vcutils.corpus import VIDEO_SUFFIXES
from vcutils.scores.runs import Run

MOST_BEAMS = 10


class AttentionView(anywidget.AnyWidget):
    """view.js as a widget, by itself for notebooks that know no ipywidgets: with `controls` it needs none beside it."""

    _esm, _css = page.script(), page.source("view.css")
    clip, captions = Dict().tag(sync=True), Dict().tag(sync=True)
    word = Int(0).tag(sync=True)  # this and the next two follow every step
    last = Int(0).tag(sync=True)  # number of the caption's last word
    beam = Int(0).tag(sync=True)
    needs: Any = List().tag(sync=True)  # of the captions; they follow them, since they take longer
    wanted = Dict().tag(sync=True)  # hidden, start, size: frames to hide, words to begin with and beam size asked for
    titles: Any = List(Unicode()).tag(sync=True)  # clips to choose from
    rows: Any = List().tag(sync=True)  # clips in a table above it
    message = Unicode("").tag(sync=True)
    controls = Bool(False).tag(sync=True)


class Explorer(widgets.VBox):
    """The live explorer on a run, opened at one clip (default: the first of the test split, where there is one).

    Bad clips give a message in the widget. `save` writes what is shown as one HTML page.
    """

    def __init__(self, run: Run, video_id: str | None = None, decode: DecodeConfig | None = None) -> None:
        self.run, self.decode = run, decode or run.decode
        self.original = self.shown = View("", ())  # the clip with all its frames; without those that are hidden
        self.play, self.slider = widgets.Play(interval=1000), widgets.IntSlider(description="word", readout=False)
        self.view = AttentionView(message="upload a clip of yours, or give its path to show_file(path) in a cell")
        for control in (self.play, self.slider):
            widgets.jsdlink((self.view, "last"), (control, "max"))
            widgets.jslink((self.view, "word"), (control, "value"))
        super().__init__([widgets.HBox([self.play, self.slider]), self.view])
        self.view.observe(self._on_ask, ["wanted"])
        self.view.on_msg(self._on_message)
        self.view.titles = list(dict.fromkeys([*([video_id] if video_id else []), *run.data.splits["test"]]))
        if self.view.titles:
            self.show_clip(self.view.titles[0])

    def __repr__(self) -> str:
        """What stands in place of the widget where no kernel runs."""
        return "Attention explorer: run this notebook in JupyterLab, Notebook 7 or VS Code to use it."

    def _display_(self) -> AttentionView:
        """What marimo shows, which knows no ipywidgets."""
        self.view.controls = True
        return self.view

    def show_clip(self, video_id: str) -> None:
        """Show a clip of the run's corpus."""
        self._open(lambda: corpus_clip(self.run, video_id))

    def show_file(self, path: Path | str, title: str | None = None) -> None:
        """Show any video file; the way for files that are too large to upload."""
        self.view.message = "reading the clip …"
        self._open(lambda: file_clip(self.run, Path(path), title), str(path), title)

    def list_clips(self, split: str = "test") -> None:
        """Show the clips of a split in a table that can be sorted and searched; a click opens one."""
        run, views = self.run, []
        for i, best in run.predict(list(run.data.splits[split]), self.decode).items():
            view = View(i, run.timestamps(i), [best], features=torch.tensor(run.data.store[i]).float())
            views.append(with_needs(run, view, [1]))
        self.view.rows = table_rows(with_ciders(run, views))

    def hide_frames(self, frames: Collection[int]) -> None:
        """Hide exactly these frames, and caption the clip again without them."""
        self.view.wanted = self.view.wanted | {"hidden": sorted(map(int, frames))}

    def _on_ask(self, _: Any) -> None:
        """Caption the clip again, without the frames, from the words on and with the search that the view asks for."""
        hidden, start, size = (self.view.wanted[name] for name in ("hidden", "start", "size"))
        if ({*hidden}, tuple(start), size) == (self.shown.hidden, self.shown.start, self.decode.beam_size):
            return
        decode = replace(self.decode, beam_size=max(1, min(size, MOST_BEAMS)))
        try:
            shown = with_captions(self.run, self.original, decode, hidden, start)
        except UserError as error:
            return self._show(message=str(error))
        self.decode = decode
        self._show_captions(shown)

    def save(self, path: Path | str, video_ids: Sequence[str] = (), model: bool = True) -> Path:
        """Write the clip that is shown as one HTML page, beside it the same without the hidden frames, if any are.

        `video_ids` adds more clips of the corpus to the page; `model` as in `page.page_for`. Raises UserError when
        nothing is shown, and for ids that are not known once the others are written.
        """
        if not self.shown.beams:
            raise UserError("the explorer shows no clip yet: nothing to save")
        clips: list[Any] = [self.original, *(i for i in video_ids if i != self.original.title)]
        if count := len(self.shown.hidden):
            clips.insert(1, replace(self.shown, title=f"{self.shown.title} ({count} frames hidden)"))
        if problems := page.page_for(self.run, clips, path, self.decode, model=model):
            raise UserError("\n".join(problems))
        return Path(path)

    def _open(self, read: Callable[[], View], path: str = "", title: str | None = None) -> None:
        try:
            shown = with_captions(self.run, read(), self.decode)
        except UserError as error:
            return self._fail(str(error).replace(f"{path}: ", f"{title or path}: ") if path else str(error))
        self._show_captions(shown, clip=clip_content(shown), word=0)
        self.original = self.shown

    def _show_captions(self, shown: View, **traits: Any) -> None:
        """Show a view, its needs behind its captions: those are waited for."""
        self.shown = shown
        self._show(captions=caption_content(shown), needs=[], beam=0, message="", **traits)
        self.shown = with_needs(self.run, shown)
        self._show(needs=self.shown.needs)

    def _show(self, **traits: Any) -> None:
        """Set traits of the view in one message: what belongs together must arrive together."""
        shown = {"hidden": sorted(self.shown.hidden), "start": [*self.shown.start], "size": self.decode.beam_size}
        with self.view.hold_sync(), self.view.hold_trait_notifications():
            for name, value in {**traits, "wanted": shown}.items():
                setattr(self.view, name, value)

    def _on_message(self, _: Any, content: dict[str, str], files: Sequence[Any]) -> None:
        """Open the clip that was chosen, or the one that was uploaded."""
        name = content["open"]
        suffix = Path(name).suffix.lower()
        if not files:
            self.show_clip(name)
        elif suffix not in VIDEO_SUFFIXES:
            self._fail(f"{name}: not a video file; the explorer reads {', '.join(VIDEO_SUFFIXES)}")
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"clip{suffix}"  # never the sender's file name
                path.write_bytes(files[0])
                self.show_file(path, name)

    def _fail(self, reason: str) -> None:
        self.view.message = f"{reason}. Still shown: {self.original.title}" if self.shown.beams else reason


def side_by_side(first: Explorer, *others: Explorer) -> widgets.HBox:
    """Explorers beside each other on one word slider: two runs, seeds or clips."""
    for other in others:
        widgets.jslink((first.view, "word"), (other.view, "word"))
    return widgets.HBox([first, *others])


explore = Explorer  # what the notebooks call: explore(run, video_id)
