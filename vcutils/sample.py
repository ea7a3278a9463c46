"""The embedded sample corpus: video clips rendered from the free photographs inside the scikit-image wheel.

A clip shows one to three photographs, each under one camera motion, joined by hard cuts. Its captions are made from the
same plan as its frames, so `events.json` can say exactly in which seconds each noun, motion or order word is true.
Training, validation and test share all nouns, motions and sentence forms, but never a pair of nouns in one clip nor a
noun with the same motion: a model that memorises clips fails on the test split, one that sees does not.

Every motion changes what is visible in a way that single frames show (how large, how tilted, how far aside, how bright),
because a pooled image feature knows little of left and right. The photographs lie on a ruled cutting mat for that reason.
"""

import importlib.util
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm.auto import tqdm

WIDTH, HEIGHT = 320, 240
MIN_CLIPS = 8
RECIPE = 1  # raise it when the same seed renders other files, so that old corpora are built again
HEADER = "# vcutils sample corpus"  # first line of captions.txt: by it build() knows a folder as its own


@dataclass(frozen=True)
class Photo:
    """One photograph and the phrases for it; `focus` is the (x, y, size) of the crop, as fractions."""

    file: str
    phrase: str
    synonym: str  # used by one sentence form only, so that a model can know when it is due
    focus: tuple[float, float, float]
    credit: str

    @property
    def noun(self) -> str:
        """The phrase without its article."""
        return self.phrase.split(" ", 1)[1]

    @property
    def words(self) -> list[str]:
        """The tokens that name what is seen."""
        return _content_words(self.phrase, self.synonym)


@dataclass(frozen=True)
class Motion:
    """One camera motion in its four sentence forms."""

    name: str
    camera: str  # the camera ... a cat
    verb: str  # a cat ...
    gerund: str  # we see a cat ...
    adjective: str  # a video of a ... cat

    @property
    def words(self) -> list[str]:
        """The tokens that tell the motion."""
        return _content_words(self.camera, self.verb, self.gerund, self.adjective)


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
    codec: str
    seed: int
    scenes: tuple[Scene, ...]

    @property
    def file(self) -> str:
        """File name under videos/."""
        return self.id + self.suffix


# Only pictures whose docstring in skimage/data/_fetchers.py gives CC0, the public domain or no known restriction.
PHOTOS = (
    Photo("astronaut.png", "an astronaut", "a woman", (0.5, 0.35, 0.9), "NASA, public domain"),
    Photo("chelsea.png", "a cat", "a tabby", (0.42, 0.5, 0.9), "Stefan van der Walt, CC0"),
    Photo("coffee.png", "a cup", "an espresso", (0.5, 0.5, 0.9), "Rachel Michetti, CC0"),
    Photo("rocket.jpg", "a rocket", "a rocket", (0.49, 0.55, 0.7), "SpaceX, public domain"),
    Photo("coins.png", "a coin collection", "a coin collection", (0.5, 0.5, 0.9), "Brooklyn Museum, no known restrictions"),
    Photo("camera.png", "a photographer", "a man", (0.5, 0.35, 0.9), "Lav Varshney, CC0"),
    Photo("brick.png", "a wall", "a brick wall", (0.5, 0.5, 0.9), "CC0Textures, CC0"),
    Photo("grass.png", "some grass", "a lawn", (0.5, 0.5, 0.8), "linolafett, CC0"),
    Photo("gravel.png", "some gravel", "some gravel", (0.5, 0.5, 0.7), "CC0Textures, CC0"),
    Photo("hubble_deep_field.jpg", "a starry sky", "a starry sky", (0.5, 0.5, 0.5), "NASA and ESA, public domain"),
    Photo("retina.jpg", "a retina", "an eye", (0.5, 0.5, 0.95), "Mikael Häggström, CC0"),
    Photo("text.png", "a note", "a note", (0.5, 0.5, 1.0), "Wikipedia, public domain"),
    Photo("cell.png", "a cell", "a cell", (0.79, 0.56, 0.55), "Paul Müller et al., CC0"),
    Photo("ihc.png", "a tissue", "a tissue", (0.5, 0.5, 0.9), "CMMI, no known restrictions"),
)

MOTIONS = (  # by families of two, see _held_out
    Motion("zoom in", "zooms into", "comes closer", "getting bigger", "growing"),
    Motion("zoom out", "backs off", "moves away", "getting smaller", "shrinking"),
    Motion("fade in", "fades into", "lights up", "getting brighter", "brightening"),
    Motion("fade out", "fades from", "goes dark", "getting darker", "darkening"),
    Motion("rotate", "rotates over", "spins around", "turning round", "spinning"),
    Motion("pan", "pans across", "slides past", "passing sideways", "sliding"),
)
FUNCTION_WORDS = {"a", "an", "some", "over", "getting", "from"}  # in the phrases above, but name nothing by themselves

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

    Returns `out`. Raises ValueError for fewer than 8 clips or when `out` holds anything else, FileNotFoundError when
    scikit-image's photographs are missing, RuntimeError when OpenCV cannot write video.
    """
    out = Path(out)
    if clips < MIN_CLIPS:
        raise ValueError(
            f"a sample corpus needs at least {MIN_CLIPS} clips to hold pairs out for the test, not {clips}"
        )
    planned = plan(clips, seed)
    files = [clip.file for clip in planned]
    recipe = {"recipe": RECIPE, "clips": clips, "seed": seed, "files": files}
    if _is_complete(out, recipe):
        return out
    _claim(out, keep=files)

    lines = [HEADER, "# one caption per line, <video_id> <caption>; rendered by `python -m vcutils sample` from photographs"]
    lines.append("# in the scikit-image wheel (free of copyright: skimage/data/_fetchers.py), so this corpus is free, too:")
    lines += [f"#   {photo.file}: {photo.credit}" for photo in PHOTOS]
    lines += [f"{clip.id} {caption}" for clip in planned for caption in captions(clip)]
    _write_text(out / "captions.txt", "\n".join(lines) + "\n")
    splits = {split: [c.id for c in planned if c.split == split] for split in ("train", "val", "test")}
    _write_text(out / "splits.json", json.dumps(splits, indent=1) + "\n")
    _write_text(out / "events.json", json.dumps({clip.id: events(clip) for clip in planned}, indent=1) + "\n")

    pictures = {photo.file: _read_photo(photo.file) for clip in planned for photo in [s.photo for s in clip.scenes]}
    for clip in tqdm(planned, desc="sample clips", unit="clip", leave=False, disable=None if progress else True):
        _write_clip(clip, pictures, out / "videos" / clip.file)
    _write_text(out / "sample.json", json.dumps(recipe) + "\n")  # last: it says that the rest is whole
    return out


def plan(clips: int, seed: int) -> list[Clip]:
    """Draw what every clip shows: `clips` plans, in order of id; about 1/6 test, 1/10 val, the rest train.

    No pair of nouns (unordered) and no noun with its motion occurs in more than one split, and all that occurs in val
    or test occurs in train in other company.
    """
    rng = np.random.default_rng(seed)
    for _ in range(1000):  # with few clips a draw may run out of free pairs: draw again, still from the one seed
        drawn = _draw_scenes(rng, clips)
        if drawn is not None:
            break
    else:
        raise RuntimeError(f"no compositional split found for {clips} clips and seed {seed}: take another number of clips")
    planned = []
    for number, index in enumerate(rng.permutation(len(drawn)), start=1):  # shuffled: an id tells nothing of the split
        split, pairs = drawn[index]
        fps = int(rng.choice([12, 15, 20, 24, 25], p=[0.2, 0.3, 0.25, 0.15, 0.1]))
        seconds = rng.uniform(*SCENE_SECONDS[len(pairs)], size=len(pairs))
        scenes = tuple(Scene(p, m, round(s * fps)) for (p, m), s in zip(pairs, seconds, strict=True))
        suffix, codec = ".mp4", "mp4v"
        if number % 10 == 5:  # some files of other kinds, as in any real corpus
            suffix, codec = ".avi", "XVID" if number % 20 == 5 else "MJPG"
        planned.append(
            Clip(f"sample_{number:04d}", split, fps, suffix, codec, int(rng.integers(2**31)), scenes)
        )
    return planned


def captions(clip: Clip) -> list[str]:
    """Say what `clip` shows in five sentence forms; each names every scene's noun and motion, in at most 20 words.

    A form without motions would be the safest thing to say, so that a trained model would say nothing else.
    """
    scenes = clip.scenes
    moving = [_adjective(s) for s in scenes]
    shown = f"shows only {moving[0]}"
    if len(scenes) > 1:
        middle = f" continues with {moving[1]}" if len(scenes) == 3 else ""
        shown = f"starts with {moving[0]}{middle} and ends with {moving[-1]}"
    return [
        "the camera " + _in_order([f"{s.motion.camera} {s.photo.phrase}" for s in scenes]),
        "first " * (len(scenes) > 1) + _in_order([f"{s.photo.phrase} {s.motion.verb}" for s in scenes]),
        "we see " + _in_order([f"{s.photo.synonym} {s.motion.gerund}" for s in scenes]),
        "a video of " + _in_order(moving),
        "the clip " + shown,
    ]


def events(clip: Clip) -> dict[str, Any]:
    """Say when each word of the captions is true: {"duration": s, "events": [{"kind", "words", "start", "end"}, …]}.

    Times are in seconds, [start, end), with frame i at i / fps. Only words that the captions of this clip contain.
    """
    said = {word for caption in captions(clip) for word in caption.split()}
    found, frame = [], 0
    for scene, order in zip(clip.scenes, ORDER_WORDS[len(clip.scenes)], strict=True):
        start, frame = frame / clip.fps, frame + scene.frames
        for kind, words in (("scene", scene.photo.words), ("motion", scene.motion.words), ("order", order)):
            if kept := [word for word in words if word in said]:
                found.append({"kind": kind, "words": kept, "start": start, "end": frame / clip.fps})
    return {"duration": frame / clip.fps, "events": found}


def _content_words(*phrases: str) -> list[str]:
    return [word for word in dict.fromkeys(" ".join(phrases).split()) if word not in FUNCTION_WORDS]


def _adjective(scene: Scene) -> str:
    article = "some" if scene.photo.phrase.startswith("some ") else "a"  # no adjective starts with a vowel
    return f"{article} {scene.motion.adjective} {scene.photo.noun}"


def _in_order(parts: list[str]) -> str:
    if len(parts) == 3:
        return f"{parts[0]} then {parts[1]} and finally {parts[2]}"
    return " and then ".join(parts)


def _draw_scenes(rng: np.random.Generator, clips: int) -> list[tuple[str, list[tuple[Photo, Motion]]]] | None:
    """Draw (split, [(photo, motion), …]) for every clip, or None when no free pair was left."""
    test, val = max(2, round(clips / 6)), max(2, round(clips / 10))
    sizes = {"test": test, "val": val, "train": clips - test - val}  # train last: it may use whatever is left
    # Few clips show few nouns, so that each of them is in the training split several times. Nouns stand in a ring.
    count = int(np.clip(0.6 * sizes["train"], 6, len(PHOTOS)))
    photos = [PHOTOS[i] for i in rng.permutation(len(PHOTOS))[:count]]
    held = _held_out(count)
    # Training repeats the pairs of near neighbours under ever other motions: were each pair seen but once, a model
    # could learn the motions by heart from the pair, and need not look.
    near = {(a, b) for a, b in itertools.combinations(range(count), 2) if min(b - a, count - b + a) <= 2}
    owner = dict.fromkeys(near, "train") if count > 8 else {}  # pair of nouns → the split that shows it
    drawn = []
    for split, size in sizes.items():
        options = {n: [m for m in range(len(MOTIONS)) if held.get((n, m), "train") == split] for n in range(count)}
        uses: Counter[Any] = Counter()
        for i in range(size):
            by_need = sorted((n for n in options if options[n]), key=lambda n: uses["noun", n] + 1.5 * rng.random())
            free = (
                chosen
                for chosen in itertools.combinations(by_need, SCENES_PER_CLIP[i % len(SCENES_PER_CLIP)])
                if all(
                    owner.get(pair, split) == split and (split != "train" or not near or count <= 8 or pair in near)
                    for pair in _pairs(chosen)
                )
            )
            chosen = next(free, None)
            if chosen is None:
                return None
            owner |= dict.fromkeys(_pairs(chosen), split)
            scenes = []
            for noun in rng.permutation(chosen).tolist():
                company = [(noun, other) for other in chosen]
                motion = min(options[noun], key=lambda m: (sum(uses[c, m] for c in company), uses["motion", m], rng.random()))
                uses.update([("noun", noun), ("motion", motion), *((c, motion) for c in company)])
                scenes.append((photos[noun], MOTIONS[motion]))
            drawn.append((split, scenes))
    # The training split is the last one counted: it has to show every noun and every motion.
    complete = all(uses["noun", n] for n in range(count)) and all(uses["motion", m] for m in range(len(MOTIONS)))
    return drawn if complete else None


def _held_out(count: int) -> dict[tuple[int, int], str]:
    """Name the split that alone shows (noun, motion); two motions of every noun, always a family.

    With one of two opposites held out, the other would be all that training ever shows of the noun: a model could name
    it without looking which way the picture moves.
    """
    held = {}
    for noun in range(count):
        family = (noun + noun // 3) % 3
        for motion in (2 * family, 2 * family + 1):
            held[noun, motion] = "val" if noun % 3 == 2 else "test"
    return held


def _pairs(nouns: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(min(pair), max(pair)) for pair in itertools.combinations(nouns, 2)]


def _read_photo(file: str) -> np.ndarray:
    spec = importlib.util.find_spec("skimage")  # only the folder is wanted: importing skimage takes a second
    path = Path(spec.submodule_search_locations[0], "data", file) if spec and spec.submodule_search_locations else None
    picture = cv2.imread(str(path)) if path and path.is_file() else None
    if picture is None:
        raise FileNotFoundError(f"photograph {file} of scikit-image not found ({path}): pip install scikit-image")
    return picture


def _camera(motion: str, rng: np.random.Generator) -> Callable[[float], tuple[float, float, float, float]]:
    """Return path(u) → (scale, degrees, x offset in widths, brightness) for u from 0 to 1; scale 1 fills the frame."""
    side, tilt, full = float(rng.choice([-1, 1])), rng.uniform(-2, 2), rng.uniform(0.72, 0.8)
    small, large = rng.uniform(0.3, 0.34), rng.uniform(1.7, 1.9)
    turn, reach = side * rng.uniform(250, 300), side * rng.uniform(0.85, 0.95)

    def light(u: float) -> float:
        return 0.02 + 0.98 * float(np.clip((u - 0.12) / 0.7, 0, 1)) ** 1.3

    return {
        "zoom in": lambda u: (small * (large / small) ** u, tilt, 0.0, 1.0),
        "zoom out": lambda u: (large * (small / large) ** u, tilt, 0.0, 1.0),
        "rotate": lambda u: (0.85 * full, tilt + turn * u, 0.0, 1.0),
        "pan": lambda u: (1.05, tilt / 2, reach * (1 - 2 * u), 1.0),
        "fade in": lambda u: (full, tilt, 0.0, light(u)),
        "fade out": lambda u: (full, tilt, 0.0, light(1 - u)),
    }[motion]


def _crop(photo: Photo, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a 4:3 piece around the photo's focus, a little different in place, size and colour each time."""
    rows, columns = picture.shape[:2]
    x, y, size = photo.focus
    size *= rng.uniform(0.88, 1.0)
    crop_w, crop_h = (int(v * size * min(columns / WIDTH, rows / HEIGHT)) for v in (WIDTH, HEIGHT))
    left = int(np.clip(columns * (x + rng.uniform(-0.05, 0.05)) - crop_w / 2, 0, columns - crop_w))
    top = int(np.clip(rows * (y + rng.uniform(-0.05, 0.05)) - crop_h / 2, 0, rows - crop_h))
    tint = rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, size=3)
    return np.clip(picture[top : top + crop_h, left : left + crop_w] * tint, 0, 255).astype(np.uint8)


def _table(crop: np.ndarray) -> np.ndarray:
    """Lay the photograph on a cutting mat four times as wide and high; its lines tell size, tilt and place of any photo."""
    photo_w, photo_h, cell = WIDTH * 3 // 2, HEIGHT * 3 // 2, WIDTH * 3 // 16
    table = np.full((4 * photo_h, 4 * photo_w, 3), (60, 70, 40), np.uint8)
    for line in range(5):
        table[line::cell] = table[:, line::cell] = (130, 170, 150)
    top, left = 3 * photo_h // 2, 3 * photo_w // 2
    table[top : top + photo_h, left : left + photo_w] = cv2.resize(crop, (photo_w, photo_h), interpolation=cv2.INTER_AREA)
    return table


def _frames(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Render one scene: BGR frames, uint8 (HEIGHT, WIDTH, 3)."""
    near = _table(_crop(scene.photo, picture, rng))
    far = cv2.resize(near, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # smoothed: small lines do not flicker
    path = _camera(scene.motion.name, rng)
    phase, hand = rng.uniform(0, 2 * np.pi, size=2), rng.uniform(1, 3)  # nobody holds a camera quite still
    for u in np.linspace(0, 1, scene.frames):
        scale, degrees, offset, brightness = path(float(u))
        table = near if scale > 0.7 else far
        rows, columns = table.shape[:2]
        pixels = scale * 4 * WIDTH / columns  # scale from the table's pixels to the frame's
        matrix = cv2.getRotationMatrix2D((columns / 2, rows / 2), degrees, pixels)
        sway_x, sway_y = hand * np.sin(2.6 * np.pi * u + phase)
        matrix[:, 2] += (WIDTH / 2 - columns / 2 + offset * WIDTH + sway_x, HEIGHT / 2 - rows / 2 + sway_y)
        frame = cv2.warpAffine(table, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_WRAP)
        yield cv2.convertScaleAbs(frame, alpha=brightness)


def _write_clip(clip: Clip, pictures: dict[str, np.ndarray], path: Path) -> None:
    rng = np.random.default_rng(clip.seed)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")  # keeps the suffix: OpenCV goes by it
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*clip.codec), clip.fps, (WIDTH, HEIGHT))
    try:
        if not writer.isOpened():
            raise RuntimeError(f"OpenCV cannot write {path} with codec {clip.codec}: pip install opencv-python-headless")
        for scene in clip.scenes:
            for frame in _frames(scene, pictures[scene.photo.file], rng):
                writer.write(frame)
        writer.release()
        os.replace(temporary, path)
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)


def _is_complete(out: Path, recipe: dict[str, Any]) -> bool:
    try:
        if json.loads((out / "sample.json").read_text(encoding="utf-8")) != recipe:
            return False
    except (OSError, ValueError):
        return False
    files = [out / "captions.txt", out / "splits.json", out / "events.json"]
    return all(path.is_file() for path in files + [out / "videos" / file for file in recipe["files"]])


def _claim(out: Path, keep: list[str]) -> None:
    """Make `out` ready for writing, or refuse it when anyone else's files lie in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        marker = out / "captions.txt"
        if not marker.is_file() or not marker.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
            raise ValueError(f"{out} holds something other than a sample corpus: name a new or empty folder")
    (out / "sample.json").unlink(missing_ok=True)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    for path in (out / "videos").glob("sample_[0-9][0-9][0-9][0-9].*"):
        if path.name not in keep and path.suffix in (".mp4", ".avi"):
            path.unlink()  # of the sample corpus that is being replaced


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
