"""Clips with their captions, asked of a run: with all their frames or without some, from words of someone else on."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcutils.attention.measures import WORD_END, entropy, need, read_events
from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis, generate
from vcutils.features import clip_features
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import frames_at
from vcutils.scores.coco import References
from vcutils.scores.runs import Run
from vcutils.vocab import PAD, UNK

HEIGHT = 270  # pixels of the frames that are kept for showing
WINDOWS = (1, 3)  # frames that are taken out together to see what they are worth


@dataclass(frozen=True)
class View:
    """One clip with its captions, ready to be shown."""

    title: str
    timestamps: Sequence[float]  # (T,) seconds
    beams: Sequence[Hypothesis] = ()  # best first
    images: Sequence[np.ndarray] = ()  # T times RGB uint8 (height, width, 3); without them numbered tiles are shown
    references: Sequence[str] = ()  # human captions
    timed: bool = True  # False: no times are known, `timestamps` only count the frames
    hidden: frozenset[int] = frozenset()  # frames that the model was not shown
    start: tuple[str, ...] = ()  # words that someone else chose; the captions go on from them
    before: Hypothesis | None = None  # the best caption of the model's own with all frames, where this is another
    needs: Sequence[dict[str, Any]] = ()  # of each beam, JSON-ready: see `with_needs`
    events: Sequence[dict[str, Any]] = ()  # what is true when, as in events.json
    cider: float | None = None  # of the best caption
    features: Tensor = field(default_factory=lambda: torch.empty(0))  # (T, D); a page without a model needs none
    note: str = ""  # what the viewer should know about this clip


def corpus_clip(run: Run, video_id: str) -> View:
    """A clip of the run's corpus, without captions yet. Raises UserError for an unknown id."""
    features = torch.from_numpy(np.asarray(run.data.store[video_id], np.float32))
    try:
        problem = "only the features of this clip are at hand, so its frames are shown as numbers."
        images = run.thumbnails(video_id, HEIGHT) or []
        if images and len(images) != len(features):
            images, problem = [], "the clip is not the one that its features were extracted from."
    except VideoError as error:
        images, problem = [], str(error)
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
    """The view with captions that begin with the words of `start`, those of someone else; `before` is then its own.

    The model never receives the `hidden` frames. Attention rows still cover all T frames, with 0 at the hidden ones.
    Raises UserError when no frame is left, and when no caption can begin so.
    """
    hidden = {*hidden} & {*range(len(view.features))}
    if not (visible := [frame for frame in range(len(view.features)) if frame not in hidden]):
        raise UserError("At least one frame must stay visible: the caption below is the one from before.")
    if (hidden or start) and not view.beams:
        view = with_captions(run, view, decode)
    model: Any = _Begun(run, start) if start else run.model
    with _one_thread():
        try:
            mask = torch.ones(1, len(visible), dtype=torch.bool)
            beams = generate(model, run.vocabulary, view.features[visible][None], mask, decode)[0]
        except UserError as error:
            raise UserError(f"no caption can begin with “{' '.join(start)}”") if start else error from error
    for beam in beams:
        beam.attention = _over_all(beam.attention, hidden)
        if beam.end_attention is not None:
            beam.end_attention = _over_all(beam.end_attention, hidden)
    before = view.beams[0] if hidden or start else None
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


def with_ciders(run: Run, views: Sequence[View]) -> list[View]:
    """The views with their best captions' CIDEr among the clips of their splits; None for clips without references."""
    ids = [view.title.partition(" · ")[0] for view in views]
    splits = [split for split in run.data.splits.values() if not set(ids).isdisjoint(split)]
    scorer = References({i: list(run.data.captions[i]) for split in splits for i in split})
    known = [n for n, i in enumerate(ids) if i in scorer.texts]
    values = scorer.cider([(ids[n], views[n].beams[0].caption) for n in known]) if known else []
    ciders = dict(zip(known, values, strict=True))
    return [replace(view, cider=ciders.get(n)) for n, view in enumerate(views)]


def table_rows(views: Sequence[View]) -> list[dict[str, Any]]:
    """The table of clips: of each best caption CIDEr, mean spread, and the mean of its words' largest need."""
    rows = []
    for view in views:
        best, needs = view.beams[0], view.needs and view.needs[0]["needs"][WINDOWS[0]]
        row = {"title": view.title, "caption": best.caption, "cider": view.cider}
        row["need"] = round(float(np.max(needs[: len(best.words)], axis=1).mean()), 3) if needs else None
        rows.append(row | {"spread": round(float(entropy(best.attention).mean()), 3)})
    return rows
