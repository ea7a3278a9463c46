"""The embedded sample corpus: video clips rendered from the free photographs inside the scikit-image wheel.

A clip shows one to three photographs, each under one camera motion, joined by hard cuts. Its captions are made from the
same plan as its frames, so `events.json` can say exactly in which seconds each noun, motion or order word is true.
Training, validation and test share all nouns, motions and sentence forms, but never a pair of nouns in one clip nor a
noun with the same motion: a model that memorises clips fails on the test split, one that sees does not.

Every motion changes what is visible in a way that single frames show (how large, how tilted, how far aside, how
bright), because a pooled image feature knows little of left and right.
"""

import importlib.util
import itertools
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from vcutils.config import UserError
from vcutils.corpus import SPLITS
from vcutils.runtime.capture import cv2
from vcutils.runtime.files import read_json, replacing, write_text
from vcutils.runtime.machine import is_quiet

WIDTH, HEIGHT = 320, 240
MIN_CLIPS = 8
RECIPE = 1  # raise it when the same seed renders other files, so that old corpora are built again
HEADER = "# vcutils sample corpus"  # first line of captions.txt: by it build() knows a folder as its own


@dataclass(frozen=True)
class Photo:
    """One photograph and the words for it; `focus` is the (x, y, size) of the crop, as fractions."""

    file: str
    phrase: str
    synonym: str  # used by one sentence form only, so that a model can know when it is due
    words: tuple[str, ...]  # the tokens of both phrases that name what is seen
    focus: tuple[float, float, float]
    credit: str


@dataclass(frozen=True)
class Motion:
    """One camera motion in its four sentence forms, and the tokens in them that mean the motion."""

    name: str
    camera: str  # the camera ... a cat
    verb: str  # a cat ...
    gerund: str  # we see a cat ...
    relative: str  # a cat that ...
    words: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """One photograph under one motion for a number of frames."""

    photo: Photo
    motion: Motion
    frames: int


@dataclass(frozen=True)
class Clip:
    """The plan of one clip; `seed` draws the details of its pictures."""

    id: str
    split: str
    fps: int
    suffix: str
    codec: str  # as OpenCV names it, four letters
    seed: int
    scenes: tuple[Scene, ...]

    @property
    def file(self) -> str:
        """File name under videos/."""
        return self.id + self.suffix


def _read_table(cls: Any, name: str) -> tuple[Any, ...]:
    """The objects of one table in photos_and_motions.json; lists become tuples, so that the objects can be hashed."""
    text = files("vcutils.corpora").joinpath("photos_and_motions.json").read_text(encoding="utf-8")
    rows = json.loads(text)[name]
    return tuple(cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows)


PHOTOS: tuple[Photo, ...] = _read_table(Photo, "photos")
MOTIONS: tuple[Motion, ...] = _read_table(Motion, "motions")

# Order words by the number of scenes: those that are true in the first, second, ... scene.
ORDER_WORDS = {
    1: ((),),
    2: (("first", "starts"), ("then", "ends")),
    3: (("first", "starts"), ("then", "continues"), ("finally", "ends")),
}
SCENE_SECONDS = {1: (4.2, 5.5), 2: (2.1, 3.8), 3: (1.8, 2.6)}
SCENES_PER_CLIP = (2, 2, 3, 2, 1, 2, 2, 3, 2, 2)  # mostly two, a few one, some three


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
    if _is_complete(out, recipe):
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
    for clip in tqdm(planned, desc="sample clips", unit="clip", leave=False, disable=is_quiet(progress)):
        _write_clip(clip, pictures, out / "videos" / clip.file)
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
        fps = int(rng.choice([12, 15, 20, 24, 25], p=[0.2, 0.3, 0.25, 0.15, 0.1]))
        seconds = rng.uniform(*SCENE_SECONDS[len(pairs)], size=len(pairs))
        scenes = tuple(Scene(p, m, round(s * fps)) for (p, m), s in zip(pairs, seconds, strict=True))
        suffix, codec = ".mp4", "mp4v"
        if number % 10 == 5:  # some files of other kinds, as in any real corpus
            suffix, codec = ".avi", "XVID" if number % 20 == 5 else "MJPG"
        planned.append(Clip(f"sample_{number:04d}", split, fps, suffix, codec, int(rng.integers(2**31)), scenes))
    return planned


def captions(clip: Clip) -> list[str]:
    """Describe `clip` in five sentence forms; four name the motions, and all name the noun of every scene."""
    scenes = clip.scenes
    phrases = [scene.photo.phrase for scene in scenes]
    first, summary = "", f"shows only {phrases[0]}"
    if len(scenes) > 1:
        middle = f" continues with {phrases[1]}" if len(scenes) == 3 else ""
        first, summary = "first ", f"starts with {phrases[0]}{middle} and ends with {phrases[-1]}"
    return [
        "the camera " + _in_order([f"{s.motion.camera} {s.photo.phrase}" for s in scenes]),
        first + _in_order([f"{s.photo.phrase} {s.motion.verb}" for s in scenes]),
        "we see " + _in_order([f"{s.photo.synonym} {s.motion.gerund}" for s in scenes]),
        "a video " + _in_order([f"of {s.photo.phrase} that {s.motion.relative}" for s in scenes]),
        "the clip " + summary,
    ]


def events(clip: Clip) -> dict[str, Any]:
    """When each word of the captions is true: {"duration": s, "events": [{"kind", "words", "start", "end"}, …]}.

    Times are in seconds, [start, end), with frame i at i / fps. Only words that the captions of this clip contain.
    """
    vocabulary = set(" ".join(captions(clip)).split())
    rows, frame = [], 0
    for scene, order in zip(clip.scenes, ORDER_WORDS[len(clip.scenes)], strict=True):
        start, frame = frame / clip.fps, frame + scene.frames
        for kind, words in (("scene", scene.photo.words), ("motion", scene.motion.words), ("order", order)):
            if used := [word for word in words if word in vocabulary]:
                rows.append({"kind": kind, "words": used, "start": start, "end": frame / clip.fps})
    return {"duration": frame / clip.fps, "events": rows}


def _in_order(parts: list[str]) -> str:
    return "{} then {} and finally {}".format(*parts) if len(parts) == 3 else " and then ".join(parts)


def _draw_scenes(rng: np.random.Generator, clips: int) -> list[tuple[str, list[tuple[Photo, Motion]]]] | None:
    """Draw (split, [(photo, motion), …]) for every clip, or None when no free pair was left."""
    test, val = max(2, round(clips / 6)), max(2, round(clips / 10))
    sizes = {"test": test, "val": val, "train": clips - test - val}  # train last: it may use whatever is left
    # Few clips show few nouns, so that each of them is in the training split several times.
    nouns = rng.permutation(len(PHOTOS))[: int(np.clip(1.8 * sizes["train"] / 3, 5, len(PHOTOS)))].tolist()
    motions = range(len(MOTIONS))
    # (noun, motion) → the split that alone may show it, where that is not the training split
    reserved = {(noun, i % len(motions)): "test" for i, noun in enumerate(nouns)}
    reserved |= {(noun, (i + 2) % len(motions)): "val" for i, noun in enumerate(nouns)}
    owner: dict[tuple[int, int], str] = {}  # pair of nouns → the split that shows it
    drawn = []
    for split, size in sizes.items():
        uses: Counter[Any] = Counter()  # of each noun, each motion and each (noun, motion) in this split
        for i in range(size):
            rarest_first = sorted(nouns, key=lambda noun: uses["noun", noun] + 1.5 * rng.random())
            groups = itertools.combinations(rarest_first, SCENES_PER_CLIP[i % len(SCENES_PER_CLIP)])
            group = next((g for g in groups if all(owner.get(pair, split) == split for pair in _pairs(g))), None)
            if group is None:
                return None
            owner |= dict.fromkeys(_pairs(group), split)
            scenes = []
            for noun in rng.permutation(group).tolist():
                allowed = [m for m in motions if reserved.get((noun, m), "train") == split]
                motion = min(allowed, key=lambda m: (uses[noun, m], uses["motion", m], rng.random()))
                uses.update([("noun", noun), ("motion", motion), (noun, motion)])
                scenes.append((PHOTOS[noun], MOTIONS[motion]))
            drawn.append((split, scenes))
        everything = [("noun", noun) for noun in nouns] + [("motion", motion) for motion in motions]
        if split == "train" and not all(uses[word] for word in everything):
            return None
    return drawn


def _pairs(nouns: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(min(pair), max(pair)) for pair in itertools.combinations(nouns, 2)]


def _read_photo(file: str) -> np.ndarray:
    package = importlib.util.find_spec("skimage")  # finds the folder without the second that an import takes
    path = Path(package.origin).parent / "data" / file if package and package.origin else None
    picture = cv2.imread(str(path)) if path and path.is_file() else None
    if picture is None:
        raise UserError(f"photograph {file} of scikit-image not found ({path}): pip install scikit-image")
    return picture


def _camera(motion: str, rng: np.random.Generator) -> Callable[[float], tuple[float, float, float, float]]:
    """Return path(u) → (scale, degrees, x offset in widths, brightness) for u from 0 to 1; scale 1 fills the frame."""
    side, tilt = float(rng.choice([-1, 1])), float(rng.uniform(-4, 4))
    small, large, full = rng.uniform(0.42, 0.5), rng.uniform(1.8, 2.1), rng.uniform(1.05, 1.15)
    turn, reach = side * rng.uniform(200, 300), side * rng.uniform(0.72, 0.82)
    return {
        "zoom in": lambda u: (small * (large / small) ** u, tilt, 0.0, 1.0),
        "zoom out": lambda u: (large * (small / large) ** u, tilt, 0.0, 1.0),
        "rotate": lambda u: (0.8 * full, tilt + turn * u, 0.0, 1.0),
        "pan": lambda u: (full, 0.0, reach * (1 - 2 * u), 1.0),
        "fade in": lambda u: (full, tilt / 4, 0.0, 0.03 + 0.97 * u**1.3),
        "fade out": lambda u: (full, tilt / 4, 0.0, 0.03 + 0.97 * (1 - u) ** 1.3),
    }[motion]


def _frames(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Render one scene: a list of BGR frames, uint8 (HEIGHT, WIDTH, 3)."""
    rows, columns = picture.shape[:2]
    x, y, size = scene.photo.focus
    size *= rng.uniform(0.88, 1.0)
    crop_w, crop_h = (int(v * size * min(columns / WIDTH, rows / HEIGHT)) for v in (WIDTH, HEIGHT))
    left = int(np.clip(columns * (x + rng.uniform(-0.05, 0.05)) - crop_w / 2, 0, columns - crop_w))
    top = int(np.clip(rows * (y + rng.uniform(-0.05, 0.05)) - crop_h / 2, 0, rows - crop_h))
    crop = picture[top : top + crop_h, left : left + crop_w]
    tint = rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, size=3)
    crop = np.clip(crop * tint, 0, 255).astype(np.uint8)
    levels = {f: cv2.resize(crop, (f * WIDTH, f * HEIGHT), interpolation=cv2.INTER_AREA) for f in (1, 2)}

    path = _camera(scene.motion.name, rng)
    desk = rng.uniform(50, 75, size=3)  # the photograph lies on a plain grey desk, never as dark as a fade
    sway, phase, amount = rng.uniform(0.4, 0.9), rng.uniform(0, 2 * np.pi, size=2), rng.uniform(1, 3)
    frames = []
    for u in np.linspace(0, 1, scene.frames):
        scale, degrees, offset, brightness = path(float(u))
        level = 2 if scale > 1 else 1  # the smaller copy is already smoothed, so that small pictures do not flicker
        matrix = cv2.getRotationMatrix2D((level * WIDTH / 2, level * HEIGHT / 2), degrees, scale / level)
        hand_x, hand_y = amount * np.sin(2 * np.pi * sway * 2 * u + phase)
        matrix[0, 2] += WIDTH / 2 * (1 - level) + offset * WIDTH + hand_x
        matrix[1, 2] += HEIGHT / 2 * (1 - level) + hand_y
        frame = cv2.warpAffine(levels[level], matrix, (WIDTH, HEIGHT), borderValue=tuple(desk.tolist()))
        frames.append(cv2.convertScaleAbs(frame, alpha=brightness))
    return frames


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


def _is_complete(out: Path, recipe: dict[str, Any]) -> bool:
    names = ["captions.txt", "splits.json", "events.json", *(f"videos/{file}" for file in recipe["files"])]
    with suppress(OSError, ValueError):
        return read_json(out / "sample.json") == recipe and all((out / name).is_file() for name in names)
    return False


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
