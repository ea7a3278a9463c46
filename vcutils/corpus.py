"""A folder becomes clips, captions and splits.

A corpus is a folder that anyone can bring. It is only ever read:

    videos/                          <video_id>.mp4, .avi, … (or YouTubeClips/)
    captions.txt                     one "<video_id> <caption>" per line, # comments
    splits.json                      optional: {"train": [ids], "val": [ids], "test": [ids]}
    features/<name>/<video_id>.npy   optional: (T, D) arrays in place of clips

`vcutils.corpora` reads the caption formats of MSVD, MSR-VTT and COCO into the same `Corpus`.
"""

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vcutils.config import UserError
from vcutils.runtime import checks
from vcutils.runtime.files import read_json, read_text, write_text

VIDEO_DIRS = ("videos", "YouTubeClips")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
SPLITS = ("train", "val", "test")
Splits = dict[str, list[str]]
Captions = dict[str, list[str]]


@dataclass(frozen=True)
class Corpus:
    """Clips, captions and split of one corpus folder, as found on disk."""

    root: Path
    clips: dict[str, Path]  # id -> video file
    captions: Captions  # id -> captions, in the file's order
    own_splits: Splits | None = None  # the split that the corpus brings
    split_origin: str = "the corpus itself"  # where own_splits comes from
    features: dict[str, Path] = field(default_factory=dict)  # name -> folder of <id>.npy
    problems: list[str] = field(default_factory=list)  # what was passed over, one line each
    excluded: list[str] = field(default_factory=list)  # usable, but left out by the user's list
    indexed: Splits | None = None  # the split in use, where all of this is from `pack --corpus`

    @property
    def name(self) -> str:
        """The folder's name; artifacts go to data/<name>/."""
        return self.root.name

    @property
    def usable(self) -> list[str]:
        """Ids that have captions and a clip (or features in place of one), sorted."""
        own = (p.stem for folder in self.features.values() for p in folder.glob("*.npy"))
        return sorted({*self.clips, *own}.intersection(self.captions))


def open_corpus(
    root: Path,
    captions: Captions | None = None,
    own_splits: Splits | None = None,
    problems: Iterable[str] = (),
) -> Corpus:
    """Read a corpus folder; `corpora.open_corpus` hands over what it read from other formats.

    Raises UserError when the folder, its captions, or both clips and features are missing.
    """
    root, problems = checks.existing_folder(root), list(problems)
    if captions is None:
        captions = read_captions(root / "captions.txt", problems)
    clips = find_clips(root, problems)
    features = {p.name: p for p in sorted((root / "features").glob("*")) if p.is_dir()}
    if not clips and not features:
        where = " or ".join(VIDEO_DIRS)
        raise UserError(f"{root}: no clips in {where}/ and no features/<name>/*.npy")
    if (root / "splits.json").is_file():
        own_splits = read_splits(root / "splits.json")
    corpus = Corpus(root, clips, captions, own_splits, features=features, problems=problems)
    if not corpus.usable:
        hint = "the ids of the captions must be the clips' file names"
        raise UserError(f"{root}: no clip has a caption; {hint}")
    problems += checks.unused(captions, clips, set(corpus.usable), own_splits)
    return corpus


def find_clips(root: Path, problems: list[str]) -> dict[str, Path]:
    """Video files by id, which is the file's name without its suffix."""
    for folder in (root / name for name in VIDEO_DIRS):
        if folder.is_dir():
            files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES]
            return checks.collect_clips(files, folder, problems)
    return {}


def read_captions(path: Path, problems: list[str]) -> Captions:
    """Captions by id from lines "<video_id> <caption>"; # begins a comment line."""
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        video_id, *caption = line.split(maxsplit=1)
        if caption:
            pairs.append((video_id, caption[0]))
        else:
            problems.append(f"{path.name}:{number}: no caption after {reprlib.repr(video_id)}")
    return checks.collect_captions(pairs, path, problems)


def read_splits(path: Path) -> Splits:
    """A splits.json: {"train": [ids], "val": [ids], "test": [ids]}. Raises UserError for others."""
    return checks.checked_splits(read_json(path), path)


def make_splits(corpus: Corpus) -> tuple[Splits, str]:
    """The split to use and where it comes from: the corpus' own, or 70/15/15 with seed 42.

    Only usable clips are kept. A corpus without a usable validation clip gives up some training
    clips for it; the test split is never touched. Raises UserError for an empty split.
    """
    usable = set(corpus.usable)
    if corpus.own_splits is not None:
        splits, origin = corpus.own_splits, corpus.split_origin
    else:  # with the excluded clips, so that leaving one out moves no other to another split
        splits, origin = random_splits(usable.union(corpus.excluded)), "70/15/15 at random, seed 42"
    splits = {name: [i for i in splits[name] if i in usable] for name in SPLITS}
    if not splits["val"] and len(splits["train"]) > 1:
        moved = splits["train"][:: max(2, min(7, len(splits["train"])))]  # every seventh
        splits["train"] = [i for i in splits["train"] if i not in moved]
        splits["val"] = moved
        origin += f", {len(moved)} training clips moved to the empty validation split"
    for name in SPLITS:
        if not splits[name]:
            reason = f"the {name} split ({origin}) has no clip with captions"
            raise UserError(f"{corpus.root}: {reason}; add some, or write a splits.json there")
    return splits, origin


def random_splits(ids: Iterable[str], seed: int = 42) -> Splits:
    """70/15/15 of the sorted ids, shuffled; at least one clip each in val and test of three."""
    ordered = sorted(ids)
    order = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    val = max(1, int(0.15 * len(order)))
    train = max(0, min(int(0.7 * len(order)), len(order) - val - 1))
    parts = (order[:train], order[train : train + val], order[train + val :])
    return {name: sorted(part) for name, part in zip(SPLITS, parts, strict=True)}


def save_splits(splits: Mapping[str, list[str]], path: Path) -> None:
    """Write the split in use as JSON, whole or not at all."""
    write_text(path, json.dumps(splits, indent=1))
