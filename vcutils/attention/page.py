"""Clips with their captions, ready to be shown, and one self-contained HTML page of them.

No network, no kernel, no other file: the page works from a USB stick. Captions, ids and file names reach it only as
JSON, and its script shows them only as text; its Content-Security-Policy allows that one script and data: pictures.
"""

import base64
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcutils.attention.figures import number_tile
from vcutils.attention.measures import check_alignment
from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis, generate
from vcutils.features import clip_features
from vcutils.runtime.capture import VideoError, cv2
from vcutils.runtime.decoding import frames_at
from vcutils.runtime.files import sweep, write_text
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
    references: Sequence[str] = ()  # human captions
    timed: bool = True  # False: no times are known, `timestamps` only count the frames
    hidden: frozenset[int] = frozenset()  # frames that the model was not shown
    note: str = ""  # what the viewer should know about this clip

    @property
    def labels(self) -> list[str]:
        """What stands under each frame: its time, with as many digits as tell neighbours apart."""
        if not self.timed:
            return [f"frame {i + 1}" for i in range(len(self.timestamps))]
        digits = 2 if np.diff(self.timestamps).min(initial=1.0) < 0.1 else 1
        return [f"{t:.{digits}f} s" for t in self.timestamps]

    @property
    def pictures(self) -> Sequence[np.ndarray]:
        """The images (T), or tiles with the frames' numbers where there are none."""
        return self.images if self.images is not None else [number_tile(i + 1) for i in range(len(self.timestamps))]

    @property
    def aspect(self) -> float:
        """Width of a picture divided by its height."""
        height, width = self.pictures[0].shape[:2]
        return width / height


def corpus_clip(run: Run, video_id: str) -> tuple[View, Tensor]:
    """A clip of the run's corpus, without captions yet, and its features (T, D). Raises UserError for an unknown id."""
    features = torch.from_numpy(np.asarray(run.data.store[video_id], np.float32))
    images, problem = None, ""
    try:
        images = run.thumbnails(video_id, HEIGHT)
        if images is None:
            problem = "only the features of this clip are at hand, so its frames are shown as numbers."
        elif len(images) != len(features):
            images, problem = None, "the clip is not the one that its features were extracted from."
    except VideoError as error:
        problem = str(error)
    view = View(
        video_id,
        run.timestamps(video_id),
        images=images,
        references=run.data.captions.get(video_id, ()),
        timed="timestamps" in run.manifest.get(video_id, {}),
        note=f"No pictures: {problem}" if problem else "",
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
    visible = [i for i in range(len(features)) if i not in hidden]
    mask = torch.ones(1, len(visible), dtype=torch.bool)
    threads = torch.get_num_threads()
    # One clip is too little work to share: on a busy machine threads that wait for each other turn 0.1 s into 6.
    torch.set_num_threads(1)
    try:
        hypotheses = generate(run.model, run.vocabulary, features[visible][None], mask, decode)[0]
    finally:
        torch.set_num_threads(threads)
    beams = []
    for hypothesis in hypotheses:
        attention = np.zeros((len(hypothesis.words), len(features)), np.float32)
        attention[:, visible] = hypothesis.attention
        beams.append(replace(hypothesis, attention=attention, end_attention=None))
    return replace(view, beams=beams, hidden=frozenset(hidden))


def page_for(run: Run, clips: Sequence[str | Path], out: Path | str, decode: DecodeConfig) -> list[str]:
    """Write one page of clips, each an id of the run's corpus or the path of any video file; an id goes first.

    Returns a line for every clip that had to be left out. Raises UserError when that is all of them; then nothing is
    written.
    """
    views, problems = [], []
    for clip in map(str, clips):
        try:
            if clip in run.data.store.ids:
                view, features = corpus_clip(run, clip)
            elif os.path.exists(clip):
                view, features = file_clip(run, Path(clip))
            else:
                raise UserError(f"{clip}: neither a clip of {run.data.root.name} nor a file")
            views.append(with_captions(run, view, features, decode))
        except UserError as error:
            problems.append(str(error))
    if not views:
        raise UserError("\n".join(["no page written: none of the clips can be shown", *problems]))
    save_page(out, views)
    return problems


def save_page(path: Path | str, views: Sequence[View]) -> Path:
    """Write one HTML file that shows the views, with a chooser when there are several; whole or not at all.

    Raises ValueError when there is no view, or when the parts of one do not fit together.
    """
    if not views:
        raise ValueError("a page needs at least one clip to show")
    page = files("vcutils.attention").joinpath("page.html").read_text(encoding="utf-8")
    for tag in ("style", "script"):  # its policy names both by their hashes
        source = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
        page = page.replace(f"HASH-OF-{tag.upper()}", digest)
    contents = [[view.title for view in views], *map(_content, views)]
    data = "\n".join(f'<script type="application/json">{_embed(content)}</script>' for content in contents)
    sweep(Path(path).parent, f".lock-.tmp-*{Path(path).suffix}")
    write_text(Path(path), page.replace("<!-- DATA -->", data))
    return Path(path)


def _content(view: View) -> dict[str, Any]:
    """What the page's script reads of one view. Raises ValueError when its parts do not fit together."""
    if not view.beams or not view.timestamps:
        raise ValueError(f"{view.title}: nothing to show without a caption and a frame")
    if len(view.pictures) != len(view.timestamps):
        raise ValueError(f"{len(view.pictures)} pictures do not fit {len(view.timestamps)} frames")
    for hypothesis in view.beams:
        check_alignment(hypothesis.words, hypothesis.attention, view.timestamps)
    for side, quality in SIZES:  # as large as a clip's share of the page allows
        images = [jpeg_uri(picture, side, quality) for picture in view.pictures]
        if sum(map(len, images)) <= PICTURE_CHARACTERS:
            break
    return {
        "title": view.title,
        "note": view.note,
        "labels": view.labels,
        "timed": view.timed,
        "images": images,
        "aspect": round(min(4.0, max(0.25, view.aspect)), 4),
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


def jpeg_uri(image: np.ndarray, side: int, quality: int = 80) -> str:
    """An RGB picture as the data: address of a JPEG, shrunk until neither side is longer than `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _embed(value: Any) -> str:
    """JSON that may stand inside a script element: plain ASCII, and nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
