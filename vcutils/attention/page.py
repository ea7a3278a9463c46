"""Clips with their captions, ready to be shown, and one self-contained HTML page of them.

No network, no kernel, no other file: the page works from a USB stick. Captions, ids and file names reach it only as
JSON, and its script shows them only as text; its Content-Security-Policy allows that one script and data: pictures.
"""

import base64
import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from vcutils.attention.figures import number_tile
from vcutils.attention.measures import check_alignment
from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis, generate
from vcutils.features import clip_features
from vcutils.runtime.capture import VideoError
from vcutils.runtime.files import write_text
from vcutils.runtime.pictures import frames_at
from vcutils.scores.runs import Run

HEIGHT = 270  # pixels of the frames that are kept for showing
PICTURE_CHARACTERS = 1_250_000  # base64 of one clip's pictures; with captions and weights a clip stays under 1.5 MB
SIZES = ((480, 82), (400, 78), (320, 74), (240, 66), (160, 50), (96, 40))  # (longer side in pixels, JPEG quality)


@dataclass(frozen=True)
class View:
    """One clip with its captions, ready to be shown."""

    title: str
    timestamps: Sequence[float]  # (T,) seconds
    beams: Sequence[Hypothesis] = ()  # best first
    images: Sequence[np.ndarray] | None = None  # T times RGB uint8 (height, width, 3); None: numbered tiles are shown
    references: Sequence[str] = ()  # what people wrote
    timed: bool = True  # False: no times are known, `timestamps` only count the frames
    hidden: frozenset[int] = frozenset()  # frames that the model was not shown
    note: str = ""  # what the viewer should know about this clip

    def check(self) -> None:
        """Raise ValueError when captions, weights, timestamps and images do not fit together."""
        if not self.beams or not self.timestamps:
            raise ValueError(f"{self.title}: nothing to show without a caption and a frame")
        if self.images is not None and len(self.images) != len(self.timestamps):
            raise ValueError(f"{len(self.images)} pictures do not fit {len(self.timestamps)} frames")
        for hypothesis in self.beams:
            check_alignment(hypothesis.words, hypothesis.attention, self.timestamps)

    @property
    def labels(self) -> list[str]:
        """What stands under each frame: its time, with as many digits as tell neighbours apart."""
        if not self.timed:
            return [f"frame {i + 1}" for i in range(len(self.timestamps))]
        gap = float(np.diff(self.timestamps).min()) if len(self.timestamps) > 1 else 1.0
        return [f"{t:.{1 if gap >= 0.1 else 2}f} s" for t in self.timestamps]

    @property
    def pictures(self) -> Sequence[np.ndarray]:
        """The images (T), or tiles with the frames' numbers where there are none."""
        return self.images if self.images is not None else [number_tile(i + 1) for i in range(len(self.timestamps))]


def corpus_clip(run: Run, video_id: str) -> tuple[View, Tensor]:
    """A clip of the run's corpus, without captions yet, and its features (T, D). Raises UserError for an unknown id."""
    features = torch.from_numpy(np.asarray(run.data.store[video_id], np.float32))
    note, images = "", None
    try:
        images = run.thumbnails(video_id, HEIGHT)
        if images is None:
            note = "No pictures: only the features of this clip are at hand, so its frames are shown as numbers."
        elif len(images) != len(features):
            images, note = None, "No pictures: the clip is not the one that its features were extracted from."
    except VideoError as error:
        note = f"No pictures: {error}"
    view = View(
        video_id,
        run.timestamps(video_id),
        images=images,
        references=run.data.captions.get(video_id, ()),
        timed="timestamps" in run.manifest.get(video_id, {}),
        note=note,
    )
    return view, features


def file_clip(run: Run, path: Path, title: str | None = None) -> tuple[View, Tensor]:
    """Any video file, without captions yet, and its features (T, D) through the run's backbone.

    Raises UserError when the file cannot be decoded, or the backbone cannot be had.
    """
    features, frames = clip_features(run.backbone, path, run.extract)
    return View(title or path.name, frames.timestamps, images=frames_at(path, frames.indices, HEIGHT)), features


def with_captions(run: Run, view: View, features: Tensor, decode: DecodeConfig, hidden: Collection[int] = ()) -> View:
    """The view with captions for features (T, D); the model never receives the `hidden` frames, at least one is left.

    Attention rows still cover all T frames, with 0 at the hidden ones.
    """
    keep = [i for i in range(len(features)) if i not in hidden]
    batch = features[keep][None].to(_device(run))
    mask = torch.ones(batch.shape[:2], dtype=torch.bool, device=batch.device)
    beams, threads = [], torch.get_num_threads()
    # One clip is too little work to share: on a busy machine threads that wait for each other turn 0.1 s into 6.
    torch.set_num_threads(1)
    try:
        found = generate(run.model, run.vocabulary, batch, mask, decode)[0]
    finally:
        torch.set_num_threads(threads)
    for hypothesis in found:
        attention = np.zeros((len(hypothesis.words), len(features)), np.float32)
        attention[:, keep] = hypothesis.attention
        beams.append(dataclasses.replace(hypothesis, attention=attention, end_attention=None))
    return dataclasses.replace(view, beams=beams, hidden=frozenset(hidden))


def page_for(run: Run, clips: Sequence[str | Path], out: Path | str, decode: DecodeConfig) -> list[str]:
    """Write one page of clips, each an id of the run's corpus or the path of any video file; an id goes first.

    Returns a line for every clip that had to be left out. Raises UserError when that is all of them; then nothing is
    written.
    """
    views, problems = [], []
    for clip in clips:
        try:
            known = str(clip) in run.data.store.ids
            found = corpus_clip(run, str(clip)) if known else file_clip(run, Path(clip))
            views.append(with_captions(run, *found, decode))
        except UserError as error:
            lost = not known and not Path(clip).exists()
            problems.append(f"{clip}: neither a clip of {run.data.root.name} nor a file" if lost else str(error))
    if not views:
        raise UserError("\n".join(["no page written: none of the clips can be shown", *problems]))
    save_page(out, views)
    return problems


def _device(run: Run) -> torch.device:
    return next(run.model.parameters()).device


def pictures_css(view: View, scope: str) -> str:
    """The clip's frames (T) as style rules: what carries the class vc-p<i> shows frame i."""
    height, width = view.pictures[0].shape[:2]
    addresses = [data_uri(jpeg(picture, 360)) for picture in view.pictures]
    rules = "".join(f".{scope} .vc-p{i} {{background-image:url({uri})}}\n" for i, uri in enumerate(addresses))
    return f"<style>.{scope} {{--vc-aspect:{width / height:.4f}}}\n{rules}</style>"


def heatmap_html(view: View, hypothesis: Hypothesis) -> str:
    """Weights (L, T) as a table, words down and frames across; darkest is the largest weight of the caption."""
    every = -(-len(view.labels) // 14)
    times = "".join(f"<th>{'' if i % every else label}</th>" for i, label in enumerate(view.labels))
    most = hypothesis.attention.max()
    rows = []
    for word, (text, row) in enumerate(zip(hypothesis.words, hypothesis.attention, strict=True)):
        cells = [
            f'<td title="{label}: {percent(weight)}"><i style="opacity:{weight / most:.2f}"></i></td>'
            for label, weight in zip(view.labels, row, strict=True)
        ]
        rows.append(f'<tr class="vc-r{word}"><th><bdi>{html.escape(text)}</bdi></th>{"".join(cells)}</tr>')
    head = f'<thead><tr><th style="width:6rem"></th>{times}</tr></thead>'
    return f'<table class="vc-heat">{head}<tbody>{"".join(rows)}</tbody></table>'


def percent(share: float) -> str:
    """A share as people read it: 62 %, never a false 0 %."""
    return "<1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def jpeg(image: np.ndarray, side: int, quality: int = 80) -> bytes:
    """An RGB picture as JPEG, shrunk until neither side is longer than `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def data_uri(picture: bytes) -> str:
    """A JPEG as a data: address."""
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")


def save_page(path: Path | str, views: Sequence[View], title: str = "Attention explorer") -> Path:
    """Write one HTML file that shows the views, with a chooser when there are several; whole or not at all.

    Raises ValueError when there is no view, or when the parts of one do not fit together.
    """
    if not views:
        raise ValueError("a page needs at least one clip to show")
    blocks = [[view.title for view in views], *(_content(view) for view in views)]
    write_text(Path(path), _fill(title, [f'<script type="application/json">{_embed(b)}</script>' for b in blocks]))
    return Path(path)


def _content(view: View) -> dict[str, Any]:
    """What the page's script reads of one view."""
    view.check()
    height, width = view.pictures[0].shape[:2]
    return {
        "title": view.title,
        "note": view.note,
        "labels": view.labels,
        "timed": view.timed,
        "images": _fitting(view.pictures),
        "aspect": round(min(4.0, max(0.25, width / height)), 4),
        "references": list(view.references)[:10],
        "hidden": sorted(view.hidden),
        "beams": [
            {
                "words": hypothesis.words,
                "score": round(float(hypothesis.score), 3),
                "probabilities": np.exp(hypothesis.word_log_probs).astype(float).round(4).tolist(),
                "weights": hypothesis.attention.astype(float).round(4).tolist(),
            }
            for hypothesis in view.beams
        ],
    }


def _fitting(images: Sequence[np.ndarray]) -> list[str]:
    """Pictures as data: addresses, as large as a clip's share of the page allows."""
    for side, quality in SIZES:
        found = [data_uri(jpeg(image, side, quality)) for image in images]
        if sum(map(len, found)) <= PICTURE_CHARACTERS:
            break
    return found


def _embed(value: Any) -> str:
    """JSON that may stand inside a script element: plain ASCII, and nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _fill(title: str, blocks: Sequence[str]) -> str:
    """The template with its title, data and policy. The policy names the style and the script by their hashes."""
    template = files("vcutils.attention").joinpath("page.html").read_text(encoding="utf-8")
    style, script = (_hash(template.split(f"<{tag}>")[1].split(f"</{tag}>")[0]) for tag in ("style", "script"))
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape(title.encode("utf-8", "replace").decode("utf-8")),
        "data": "\n".join(blocks),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(text: str) -> str:
    """The name of an inline style or script in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
