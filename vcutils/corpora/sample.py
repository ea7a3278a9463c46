"""The embedded sample corpus: video clips rendered from the free photographs inside the scikit-image wheel.

A clip shows one to three photographs, each under one visible change, joined by hard cuts. Its captions are made from
the same plan as its frames, so `events.json` can say exactly in which seconds each thing, change or order word is true.
Training, validation and test share all things, changes and sentence forms, but never a pair of things in one clip nor
a thing with the same change: a model that memorises clips fails on the test split, one that sees does not.

The changes are those that the default features can tell apart (`tests/benchmarks/sample_corpus.py` measures it).
"""

import importlib.util
import itertools
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from vcutils.config import UserError
from vcutils.corpus import SPLITS
from vcutils.runtime.capture import cv2
from vcutils.runtime.files import read_json, replacing, write_text
from vcutils.runtime.machine import cpu_count, is_quiet

WIDTH, HEIGHT = 320, 240
MIN_CLIPS = 8
RECIPE = 2  # raise it when the same seed renders other files, so that old corpora are built again
HEADER = "# vcutils sample corpus"  # first line of captions.txt: by it build() knows a folder as its own


# Photographs, changes and sentence forms (each for one, two and three scenes); the file explains its fields.
_TEXT = files("vcutils.corpora").joinpath("photos_and_changes.json").read_text(encoding="utf-8")
_TABLES = json.loads(_TEXT, object_hook=lambda row: SimpleNamespace(**row))
PHOTOS, CHANGES, FORMS = _TABLES.photos, _TABLES.changes, _TABLES.forms

CAPTIONS = 5  # per clip
FAVOURED = 6  # how much likelier the two forms of the first scene's change are
SYNONYM = 0.2  # share of things and of changes that are not in their usual words
# Order words by the number of scenes: those that are true in the first, second, ... scene.
ORDER_WORDS = {1: ((),), 2: (("first",), ("then", "after")), 3: (("first",), ("then", "after"), ("finally",))}
SCENES_PER_CLIP = (2, 2, 3, 3, 1, 2, 3, 2, 3, 2)  # two or three, a few one
SCENE_FRAMES = {1: (6, 8), 2: (4, 6), 3: (4, 5)}  # from … to, at LOW_RATES: clips have 6 to 15 frames
LOW_RATES = (4, 5, 6)  # frames per second of most clips; every one is then sampled from the short ones
HIGH_RATES = (12, 15, 24, 25)  # of one clip in eight


class Scene(NamedTuple):
    """One photograph under one change for a number of frames."""

    photo: Any  # a row of PHOTOS
    change: Any  # a row of CHANGES
    frames: int


class Clip(NamedTuple):
    """The plan of one clip."""

    id: str
    split: str
    fps: int
    file: str  # name under videos/
    codec: str  # as OpenCV names it, four letters
    seed: int  # draws the details of its pictures
    scenes: tuple[Scene, ...]


def build(out: Path, clips: int = 120, seed: int = 0, progress: bool = True) -> Path:
    """Render the sample corpus into folder `out`: videos/, captions.txt, splits.json, events.json, sample.json.

    The same clips and seed give the same bytes. A complete corpus of the same parameters is left as it is; a sample
    corpus of other parameters, or an unfinished one, is replaced.

    Returns `out`. Raises UserError for fewer than 8 clips, when `out` holds anything else, when scikit-image's
    photographs are missing, or when OpenCV cannot write video.
    """
    out = Path(out)
    if clips < MIN_CLIPS:
        raise UserError(f"a sample corpus needs at least {MIN_CLIPS} clips to hold pairs out for the test, not {clips}")
    planned = plan(clips, seed)
    recipe: dict[str, Any] = {"recipe": RECIPE, "clips": clips, "seed": seed, "files": [clip.file for clip in planned]}
    names = ["captions.txt", "splits.json", "events.json", *(f"videos/{file}" for file in recipe["files"])]
    with suppress(OSError, ValueError):
        if read_json(out / "sample.json") == recipe and all((out / name).is_file() for name in names):
            return out
    _claim(out, recipe["files"])

    lines = [
        HEADER,
        "# one caption per line, <video_id> <caption>; rendered by `python -m vcutils sample` from photographs",
        "# in the scikit-image wheel (free of copyright: skimage/data/_fetchers.py), so this corpus is free, too:",
        *(f"#   {photo.file}: {photo.credit}" for photo in PHOTOS),
        *(f"{clip.id} {caption}" for clip in planned for caption in captions(clip)),
    ]
    splits = {split: [clip.id for clip in planned if clip.split == split] for split in SPLITS}
    write_text(out / "captions.txt", "\n".join(lines) + "\n")
    write_text(out / "splits.json", json.dumps(splits, indent=1) + "\n")
    write_text(out / "events.json", json.dumps({clip.id: events(clip) for clip in planned}, indent=1) + "\n")

    shown = {scene.photo.file for clip in planned for scene in clip.scenes}
    pictures = {file: _read_photo(file) for file in shown}
    bar = tqdm(total=clips, desc="sample clips", unit="clip", leave=False, disable=is_quiet(progress))
    with bar, ThreadPoolExecutor(cpu_count()) as pool:  # OpenCV renders and encodes outside of Python's lock
        for _ in pool.map(lambda clip: _write_clip(clip, pictures, out / "videos" / clip.file), planned):
            bar.update()
    write_text(out / "sample.json", json.dumps(recipe) + "\n")  # last: it marks the corpus as complete
    return out


def plan(clips: int, seed: int) -> list[Clip]:
    """Draw what every clip shows: `clips` plans, in order of id; about 1/6 test, 1/10 val, the rest train.

    No pair of nouns (unordered) and no noun with its motion occurs in more than one split, and all that occurs in val
    or test occurs in train in other company.
    """
    rng = np.random.default_rng(seed)
    # With few clips a draw may run out of free pairs: draw again, from the same generator.
    drawn = next(filter(None, (_draw_scenes(rng, clips) for _ in range(1000))), None)
    if drawn is None:
        raise UserError(f"no compositional split found for {clips} clips and seed {seed}: take another number of clips")
    planned = []
    for number, index in enumerate(rng.permutation(len(drawn)), start=1):  # shuffled: an id tells nothing of the split
        split, pairs = drawn[index]
        low, fewest, most = int(rng.choice(LOW_RATES)), *SCENE_FRAMES[len(pairs)]
        fps = int(rng.choice(HIGH_RATES)) if rng.random() < 1 / 8 else low
        lengths = [round(int(frames) * fps / low) for frames in rng.integers(fewest, most + 1, size=len(pairs))]
        scenes = tuple(Scene(p, c, frames) for (p, c), frames in zip(pairs, lengths, strict=True))
        suffix, codec = ".mp4", "mp4v"
        if number % 10 == 5:  # some files of other kinds, as in any real corpus
            suffix, codec = ".avi", "XVID" if number % 20 == 5 else "MJPG"
        name, seed = f"sample_{number:04d}", int(rng.integers(2**31))
        planned.append(Clip(name, split, fps, name + suffix, codec, seed, scenes))
    return planned


def captions(clip: Clip) -> list[str]:
    """Describe `clip` in five of the sentence forms; every one names all its things, all but one its changes."""
    rng = np.random.default_rng((clip.seed, 1))
    weights = np.ones(len(FORMS))
    favoured = 2 * CHANGES.index(clip.scenes[0].change)  # as people's, the form has to do with what is seen
    weights[favoured : favoured + 2] = FAVOURED
    drawn = rng.choice(len(FORMS), CAPTIONS, replace=False, p=weights / weights.sum())
    sentences = [FORMS[form][len(clip.scenes) - 1] for form in drawn]
    return [sentence.format(*(_phrases(scene, rng) for scene in clip.scenes)) for sentence in sentences]


def _phrases(scene: Scene, rng: np.random.Generator) -> SimpleNamespace:
    """A scene in the words that one person would choose, as the parts of a sentence."""
    thing = scene.photo.names[int(rng.random() < SYNONYM) % len(scene.photo.names)]
    wording = int(rng.random() < SYNONYM)
    return _parts(thing, scene.change.does[wording], scene.change.doing[wording])


def _parts(thing: str, does: str, doing: str) -> SimpleNamespace:
    return SimpleNamespace(thing=thing, does=f"{thing} {does}", that=f"{thing} that {does}", doing=f"{thing} {doing}")


def form_of(caption: str) -> int | None:
    """Which of the sentence forms a caption follows, as its number in `FORMS`; None where it follows none."""
    return next((number for number, form in enumerate(_form_patterns()) if form.fullmatch(caption)), None)


@cache
def _form_patterns() -> list[re.Pattern[str]]:
    def either(rows: Any, name: str) -> str:
        return f"(?:{'|'.join(phrase for row in rows for phrase in getattr(row, name))})"

    parts = _parts(either(PHOTOS, "names"), either(CHANGES, "does"), either(CHANGES, "doing"))
    return [re.compile("|".join(f.format(*(parts,) * 3) for f in form)) for form in FORMS]


def events(clip: Clip) -> dict[str, Any]:
    """When each word of the captions is true: {"duration": s, "events": [{"kind", "words", "start", "end"}, …]}.

    Kinds are thing, change and order. Times are in seconds, [start, end), with frame i at i / fps.
    """
    frames = itertools.accumulate((scene.frames for scene in clip.scenes), initial=0)
    # Rounded as in the features' manifest: else a scene's first frame could lie before its start.
    borders = [round(frame / clip.fps, 4) for frame in frames]
    rows = []
    for scene, order, start, end in zip(clip.scenes, ORDER_WORDS[len(clip.scenes)], borders, borders[1:], strict=False):
        for kind, words in (("thing", scene.photo.words), ("change", scene.change.words), ("order", order)):
            if words:
                rows.append({"kind": kind, "words": list(words), "start": start, "end": end})
    return {"duration": borders[-1], "events": rows}


def _draw_scenes(rng: np.random.Generator, clips: int) -> list[tuple[str, list[tuple[Any, Any]]]] | None:
    """Draw (split, [(photo, change), …]) for every clip, or None when no free pair was left."""
    test, val = max(2, round(clips / 6)), max(2, round(clips / 10))
    sizes = {"test": test, "val": val, "train": clips - test - val}  # train last: it may use whatever is left
    # Few clips show few things, so that each of them is in the training split several times.
    things = rng.permutation(len(PHOTOS))[: int(np.clip(1.8 * sizes["train"] / 3, 5, len(PHOTOS)))].tolist()
    changes = range(len(CHANGES))
    # (thing, change) → the split that alone may show it, where that is not the training split
    reserved = {(thing, i % len(changes)): "test" for i, thing in enumerate(things)}
    step = 1 if len(things) < 8 else 2  # validation asks less, so that training sees more
    reserved |= {(things[i], (i + 2) % len(changes)): "val" for i in range(0, len(things), step)}
    owner: dict[frozenset[int], str] = {}  # pair of things → the split that shows it
    drawn = []
    for split, size in sizes.items():
        shown = [t for t in things if split == "train" or any(reserved.get((t, c)) == split for c in changes)]
        uses: Counter[Any] = Counter()  # of each thing, each change and each (thing, change) in this split
        for i in range(size):
            rarest_first = sorted(shown, key=lambda thing: uses["thing", thing] + 1.5 * rng.random())
            groups = itertools.combinations(rarest_first, SCENES_PER_CLIP[i % len(SCENES_PER_CLIP)])
            group = next((g for g in groups if all(owner.get(pair, split) == split for pair in _pairs(g))), None)
            if group is None:
                return None
            owner |= dict.fromkeys(_pairs(group), split)
            scenes = []
            for thing in rng.permutation(group).tolist():
                allowed = [m for m in changes if reserved.get((thing, m), "train") == split]
                change = min(allowed, key=lambda m: (uses[thing, m], uses["change", m], rng.random()))
                uses.update([("thing", thing), ("change", change), (thing, change)])
                scenes.append((PHOTOS[thing], CHANGES[change]))
            drawn.append((split, scenes))
        everything = [("thing", thing) for thing in things] + [("change", change) for change in changes]
        if split == "train" and not all(uses[word] for word in everything):
            return None
    return drawn


def _pairs(things: tuple[int, ...]) -> list[frozenset[int]]:
    return [frozenset(pair) for pair in itertools.combinations(things, 2)]


def _read_photo(file: str) -> np.ndarray:
    package = importlib.util.find_spec("skimage")  # finds the folder without the second that an import takes
    path = Path(package.origin).parent / "data" / file if package and package.origin else None
    picture = cv2.imread(str(path)) if path and path.is_file() else None
    if picture is None:
        raise UserError(f"photograph {file} of scikit-image not found ({path}): pip install scikit-image")
    return picture


def _frames(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Render one scene: a list of BGR frames, uint8 (HEIGHT, WIDTH, 3)."""
    rows, columns = picture.shape[:2]
    x, y, size = scene.photo.focus
    size *= rng.uniform(0.88, 1.0)
    crop_w, crop_h = (int(v * size * min(columns / WIDTH, rows / HEIGHT)) for v in (WIDTH, HEIGHT))
    left = int(np.clip(columns * (x + rng.uniform(-0.05, 0.05)) - crop_w / 2, 0, columns - crop_w))
    top = int(np.clip(rows * (y + rng.uniform(-0.05, 0.05)) - crop_h / 2, 0, rows - crop_h))
    tint = rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, size=3)
    crop = np.clip(picture[top : top + crop_h, left : left + crop_w] * tint, 0, 255).astype(np.uint8)
    still = cv2.resize(crop, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), rng.uniform(-3, 3), 1.1)
    still = cv2.warpAffine(still, turn, (WIDTH, HEIGHT), borderValue=(60, 60, 60))  # a desk, never as dark as a fade
    return [_changed(scene.change.name, still, float(u), rng) for u in np.linspace(0, 1, scene.frames)]


def _changed(change: str, picture: np.ndarray, u: float, rng: np.random.Generator) -> np.ndarray:
    """The picture at progress `u` of a change, from 0 to 1."""
    if change == "dark":
        return cv2.convertScaleAbs(picture, alpha=0.03 + 0.97 * (1 - u) ** 1.3)
    if change == "squares":
        columns = round(WIDTH / 2 * 0.05 ** min(1, 1.2 * u))
        coarse = cv2.resize(picture, (columns, max(1, columns * 3 // 4)), interpolation=cv2.INTER_AREA)
        return picture if u == 0 else cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    frame = picture.copy()
    if change == "snow":
        flakes = (rng.random((HEIGHT // 4, WIDTH // 4)) < 0.8 * u).astype(np.uint8)
        frame[cv2.resize(flakes, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) > 0] = 245
    elif change == "stripes":
        width = round(28 * 0.85 * u)
        for start in range(0, WIDTH, 28):
            frame[:, start : start + width] = (30, 200, 240)
    elif change == "flood":
        frame[HEIGHT - round(0.9 * HEIGHT * u) :] = (200, 110, 20)
    else:  # curtains
        width = round(0.46 * WIDTH * u)
        frame[:, :width] = frame[:, WIDTH - width :] = (60, 30, 160)
    return frame


def _write_clip(clip: Clip, pictures: dict[str, np.ndarray], path: Path) -> None:
    rng = np.random.default_rng(clip.seed)
    with replacing(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*clip.codec), clip.fps, (WIDTH, HEIGHT))
        if not writer.isOpened():
            raise UserError(f"OpenCV cannot write {path} with codec {clip.codec}: pip install opencv-python-headless")
        try:
            for scene in clip.scenes:
                for frame in _frames(scene, pictures[scene.photo.file], rng):
                    writer.write(frame)
        finally:
            writer.release()


def _claim(out: Path, file_names: list[str]) -> None:
    """Make `out` ready for writing, or refuse it when anyone else's files lie in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        marker = out / "captions.txt"
        if not marker.is_file() or not marker.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
            raise UserError(f"{out} holds something other than a sample corpus: name a new or empty folder")
    (out / "sample.json").unlink(missing_ok=True)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    for path in (out / "videos").glob("sample_[0-9][0-9][0-9][0-9].*"):
        if path.name not in file_names and path.suffix in (".mp4", ".avi"):
            path.unlink()  # of the sample corpus that is being replaced
