"""Clips with their captions, ready to be shown, and one self-contained HTML page of them.

What `clip_content` and `caption_content` make of a view is all that view.js draws from, in the page and in a notebook.
The page needs no network, no kernel and no other file. Captions, ids and file names reach it only as JSON, and its
script shows them only as text; its Content-Security-Policy allows that one script, data: pictures and, with the model,
a worker of the script's own making.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vcutils.attention.embed import feature_content, model_content, rounded
from vcutils.attention.measures import WORD_END, check_alignment, entropy, need, read_events
from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis, generate
from vcutils.features import clip_features
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import frames_at
from vcutils.runtime.files import sweep, write_text
from vcutils.scores.coco import References
from vcutils.scores.runs import Run
from vcutils.vocab import PAD, UNK

HEIGHT = 270  # pixels of the frames that are kept for showing
PICTURE_CHARACTERS = 1_000_000  # base64 of a page's pictures, shared among its clips …
CLIP_CHARACTERS = 40_000  # … who get no less than this each
WINDOWS = (1, 3)  # frames that are taken out together to see what they are worth
NO_FEATURES = torch.empty(0)
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
    start: tuple[str, ...] = ()  # words that someone else chose; the captions go on from them
    before: Hypothesis | None = None  # the best caption of the model's own with all frames, where this is another
    needs: Sequence[dict[str, Any]] = ()  # of each beam, JSON-ready: see `with_needs`
    events: Sequence[dict[str, Any]] = ()  # what is true when, as in events.json
    cider: float | None = None  # of the best caption
    features: Tensor = NO_FEATURES  # (T, D), what the model reads; a page without a model can do without
    note: str = ""  # what the viewer should know about this clip


def corpus_clip(run: Run, video_id: str) -> View:
    """A clip of the run's corpus, without captions yet. Raises UserError for an unknown id."""
    features = torch.from_numpy(np.asarray(run.data.store[video_id], np.float32))
    try:
        problem = "only the features of this clip are at hand, so its frames are shown as numbers."
        images = run.thumbnails(video_id, HEIGHT)
        if images and len(images) != len(features):
            images, problem = None, "the clip is not the one that its features were extracted from."
    except VideoError as error:
        images, problem = None, str(error)
    references, timed = run.data.captions.get(video_id, ()), "timestamps" in run.manifest.get(video_id, {})
    note, times = "" if images else f"No pictures: {problem}", run.timestamps(video_id)
    path = run.data.root / "events.json"
    events = read_events(path).get(video_id, {"events": ()})["events"] if timed and path.is_file() else ()
    return View(video_id, times, (), images, references, timed, note=note, events=events, features=features)


def file_clip(run: Run, path: Path, title: str | None = None) -> View:
    """Any video file, without captions yet, its features through the run's backbone.

    Raises UserError when the file cannot be decoded, or the backbone cannot be had.
    """
    features, frames = clip_features(run.backbone, path, run.extract)
    images = frames_at(path, frames.indices, HEIGHT)
    return View(title or path.name, frames.timestamps, images=images, features=features)


def with_captions(
    run: Run, view: View, decode: DecodeConfig, hidden: Collection[int] = (), start: Sequence[str] = ()
) -> View:
    """The view with captions that begin with the words of `start`, those of someone else.

    The model never receives the `hidden` frames, at least one is left. Attention rows still cover all T frames, with 0
    at the hidden ones. Raises UserError when no caption can begin so.
    """
    features = view.features[[i for i in range(len(view.features)) if i not in hidden]]
    mask = torch.ones(1, len(features), dtype=torch.bool)
    model: Any = _Begun(run, start) if start else run.model
    with _one_thread():
        try:
            beams = generate(model, run.vocabulary, features[None], mask, decode)[0]
        except UserError as error:
            raise UserError(f"no caption can begin with “{' '.join(start)}”") if start else error from error
    for beam in beams:
        beam.attention = _over_all(beam.attention, hidden)
        if beam.end_attention is not None:
            beam.end_attention = _over_all(beam.end_attention, hidden)
    before = view.beams[0] if (hidden or start) and view.beams else None
    return replace(view, beams=beams, hidden=frozenset(hidden), start=tuple(start), before=before, needs=())


class _Begun:
    """A model whose captions begin with given words.

    At each of their places the given word keeps its probability, and <pad>, which is never said, gets all the rest.
    """

    def __init__(self, run: Run, words: Sequence[str]) -> None:
        self.model, self.decoder, self.start = run.model, self, run.model.decoder.start
        self.given = iter([run.vocabulary.index.get(word, UNK) for word in words])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def step(self, *inputs: Any) -> tuple[Any, Tensor, Tensor]:
        """As `Decoder.step`."""
        state, logits, weights = self.model.decoder.step(*inputs)
        if (word := next(self.given, None)) is not None:
            log_probs = logits.float().log_softmax(dim=-1)[..., word]
            logits = torch.full_like(logits, float("-inf"), dtype=torch.float32)
            logits[..., word], logits[..., PAD] = log_probs, torch.log1p(-log_probs.exp())
        return state, logits, weights


def _over_all(rows: np.ndarray, hidden: Collection[int]) -> np.ndarray:
    """Rows (..., visible frames) as rows over all frames, with 0 at the hidden ones."""
    gaps = [frame - n for n, frame in enumerate(sorted(hidden))]  # where, among the visible, each hidden frame belongs
    return np.insert(rows, gaps, 0, axis=-1)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one clip is too little work to share: threads that wait turn 0.1 s into 6
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def with_needs(run: Run, view: View, sizes: Sequence[int] = WINDOWS) -> View:
    """The view with the need of its captions' words (`measures.need`) and the words that were likely in their places.

    `sizes`: how many frames are taken out at once. None for a clip of one visible frame. What frames are worth to those
    other words comes for the best caption alone.
    """
    shown = np.delete(view.features.numpy(), sorted(view.hidden), axis=0)
    captions = [[*beam.words, *[WORD_END] * (beam.end_attention is not None)] for beam in view.beams]

    def nats(rows: np.ndarray) -> list:
        return (_over_all(rows, view.hidden).astype(float).round(2) + 0.0).tolist()  # + 0.0: no "-0.0"

    with _one_thread():
        windows = {w: need(run.model, run.vocabulary, shown, captions, w) for w in sizes if w < len(shown)}
    needs: list[dict[str, Any]] = []
    for of_windows in zip(*windows.values(), strict=True):  # a caption's
        one, by_window = of_windows[0], dict(zip(windows, of_windows, strict=True))
        others = {"words": one.others, "probabilities": one.probabilities.astype(float).round(4).tolist()}
        if not needs:
            others["needs"] = {w: nats(found.needs) for w, found in by_window.items()}
        needs.append({"needs": {w: nats(found.need) for w, found in by_window.items()}, "others": others})
    return replace(view, needs=needs)


def page_for(
    run: Run,
    clips: Sequence[str | Path | View],
    out: Path | str,
    decode: DecodeConfig,
    beside: Run | None = None,
    model: bool = True,
) -> list[str]:
    """Write one page of clips: ids of the run's corpus, which go first, paths of any video files, or opened ones.

    `beside` is another run, whose captions of the same clips stand beside those of the first. With `model` the page
    carries the captioners of all runs: what it shows is then what the weights say once rounded to float16.
    Returns a line for every clip that had to be left out. Raises UserError, and writes nothing, when that is all.
    """
    views: list[View] = []
    problems = []
    runs = [run] if beside is None else [run, beside]
    if model:
        runs = [replace(each, model=rounded(each.model)) for each in runs]
    for clip in clips:
        try:
            opened = clip if isinstance(clip, View) else _open(run, str(clip))
            if model:
                opened = replace(opened, features=opened.features.half().float())
            views += [_captioned(each, opened, decode) for each in runs]
        except UserError as error:
            problems.append(str(error))
    if not views:
        raise UserError("\n".join(["no page written: none of the clips can be shown", *problems]))
    if beside:
        views = [replace(v, title=f"{v.title} · {runs[n % 2].folder.name}") for n, v in enumerate(views)]
    models = [model_content(each.model, each.vocabulary, decode) for each in runs] if model else []
    save_page(out, with_ciders(run, views), models)
    return problems


def _captioned(run: Run, view: View, decode: DecodeConfig) -> View:
    """The view with captions and needs, for all frames or without those and from the words that it names."""
    seen = with_captions(run, view, decode)
    if view.hidden or view.start:
        seen = with_captions(run, seen, decode, view.hidden, view.start)
    return with_needs(run, seen)


def _open(run: Run, clip: str) -> View:
    if clip in run.data.store.ids:
        return corpus_clip(run, clip)
    if not os.path.exists(clip):
        raise UserError(f"{clip}: neither a clip of {run.data.root.name} nor a file")
    return file_clip(run, Path(clip))


def with_ciders(run: Run, views: Sequence[View]) -> list[View]:
    """The views with their best captions' CIDEr among the clips of their splits; None for clips without references."""
    ids = [view.title.partition(" · ")[0] for view in views]
    splits = [split for split in run.data.splits.values() if not set(ids).isdisjoint(split)]
    if not splits:
        return list(views)
    scorer = References({i: list(run.data.captions[i]) for split in splits for i in split})
    known = [n for n, i in enumerate(ids) if i in scorer.texts]
    values = dict(zip(known, scorer.cider([(ids[n], views[n].beams[0].caption) for n in known]), strict=True))
    return [replace(view, cider=values.get(n)) for n, view in enumerate(views)]


def table_rows(views: Sequence[View]) -> list[dict[str, Any]]:
    """The table of clips: of each best caption CIDEr, mean spread, and the mean of its words' largest need."""
    rows = []
    for view in views:
        best, largest = view.beams[0], None
        if view.needs:
            needs = view.needs[0]["needs"][WINDOWS[0]][: len(best.words)]
            largest = round(float(np.max(needs, axis=1).mean()), 3)
        row = {"title": view.title, "caption": best.caption, "cider": view.cider, "need": largest}
        rows.append(row | {"spread": round(float(entropy(best.attention).mean()), 3)})
    return rows


def save_page(path: Path | str, views: Sequence[View], models: Sequence[dict[str, Any]] = ()) -> Path:
    """Write `page_html` to a file, whole or not at all. Raises its ValueError."""
    page = page_html(views, models)
    sweep(Path(path).parent, f".lock-.tmp-*{Path(path).suffix}")
    write_text(Path(path), page)
    return Path(path)


def page_html(views: Sequence[View], models: Sequence[dict[str, Any]] = ()) -> str:
    """One HTML page that shows the views, with a chooser when there are several.

    With `models` (what captioner.js reads), of which the views are in turn, and views that have `features`, the page
    captions them again by itself: other frames hidden, other words, another beam size. Raises ValueError when there is
    no view, or when the parts of one do not fit together.
    """
    if not views:
        raise ValueError("a page needs at least one clip to show")
    page = source("page.html")
    for tag, part in (("style", source("view.css")), ("script", script(*["captioner.js"] * bool(models)))):
        page = page.replace(f"/* THE {tag.upper()} */", part)  # its policy names both by their hashes
        inside = page.rpartition(f"</{tag}>")[0].rpartition(f"<{tag}")[2].partition(">")[2]
        digest = base64.b64encode(hashlib.sha256(inside.encode("utf-8")).digest()).decode("ascii")
        page = page.replace(f"HASH-OF-{tag.upper()}", digest)
    share = max(CLIP_CHARACTERS, PICTURE_CHARACTERS // len(views))
    contents = [clip_content(view, share) | caption_content(view) | {"needs": view.needs} for view in views]
    if models:
        contents = [each | {"features": feature_content(v.features)} for each, v in zip(contents, views, strict=True)]
    titles = [view.title for view in views]
    contents.insert(0, {"titles": titles, "rows": table_rows(views) if len(views) > 1 else None})
    data = [f'<script type="application/json">{_embed(content)}</script>' for content in contents]
    if models:
        page = page.replace("base-uri", "worker-src blob:; base-uri", 1)
        data += [f'<script type="application/json" class="model">{_embed(model)}</script>' for model in models]
    return page.replace("<!-- DATA -->", "\n".join(data))


def script(*more: str) -> str:
    """The front end as one ES module: view.js, pages.js, and other files of this folder before them."""
    return "\n".join(map(source, [*more, "view.js", "pages.js"]))


def source(name: str) -> str:
    """The text of a file of this folder."""
    return files("vcutils.attention").joinpath(name).read_text("utf-8")


def clip_content(view: View, share: int = PICTURE_CHARACTERS) -> dict[str, Any]:
    """What view.js reads of a clip, its pictures in `share` characters at most where 96 pixels of each fit into it.

    Raises ValueError when pictures and times do not fit together.
    """
    pictures: Sequence[np.ndarray] = () if view.images is None else view.images
    if not view.timestamps or (view.images is not None and len(pictures) != len(view.timestamps)):
        raise ValueError(f"{view.title}: {len(pictures)} pictures do not fit {len(view.timestamps)} frames")
    for size in SIZES:  # as large as a clip's share of the page allows
        images = [jpeg_uri(picture, *size) for picture in pictures]
        if sum(map(len, images)) <= share:
            break
    height, width = pictures[0].shape[:2] if pictures else (3, 4)
    return {
        "title": view.title,
        "note": view.note,
        "times": list(view.timestamps),
        "timed": view.timed,
        "images": images,
        "aspect": min(4.0, max(0.25, width / height)),
        "references": list(view.references)[:10],
        "events": [{name: event[name] for name in ("kind", "words", "start", "end")} for event in view.events],
    }


def caption_content(view: View) -> dict[str, Any]:
    """What view.js reads of a clip's captions. Raises ValueError when words, weights and frames do not fit together."""
    if not view.beams:
        raise ValueError(f"{view.title}: nothing to show without a caption")
    for beam in view.beams:
        check_alignment(beam.words, beam.attention, view.timestamps)
    before = view.before and {"words": view.before.words, "score": float(view.before.score)}
    beams = [_beam(beam) for beam in view.beams]
    return {"hidden": sorted(view.hidden), "start": list(view.start), "before": before, "beams": beams}


def _beam(beam: Hypothesis) -> dict[str, Any]:
    """A caption as view.js reads it: a row for every word, and one more for <end> where it was reached."""
    weights, log_probs = beam.attention, np.asarray(beam.word_log_probs, float)
    if beam.end_attention is not None:
        weights = np.vstack([weights, beam.end_attention])
        log_probs = np.append(log_probs, min(0.0, beam.log_prob - log_probs.sum()))
    numbers = {"probabilities": np.exp(log_probs).round(4).tolist(), "weights": weights.astype(float).round(4).tolist()}
    return {"words": beam.words, "score": float(beam.score), **numbers}


def jpeg_uri(image: np.ndarray, side: int, quality: int) -> str:
    """An RGB picture as the data: address of a JPEG, shrunk until neither side is longer than `side` pixels."""
    picture, data = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(data, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _embed(value: Any) -> str:
    """JSON that may stand inside a script element: plain ASCII, and nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
