"""Where clips, captions and splits come from.

A corpus is a folder that anyone can bring: `videos/` (or `YouTubeClips/`), `captions.txt` (or
`AllVideoDescriptions.txt`, MSVD's raw CSV, MSR-VTT's `videodatainfo.json`, a COCO-style caption JSON), optionally
`splits.json` and `features/<name>/<id>.npy`. It is only ever read.
"""

import codecs
import csv
import hashlib
import json
import re
import reprlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vcutils.config import Config, UserError, write_text

VIDEO_DIRS = ("videos", "YouTubeClips")
CAPTION_FILES = ("captions.txt", "AllVideoDescriptions.txt", "videodatainfo.json")
NOT_CAPTIONS = ("splits.json", "events.json", "sample.json")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
SPLITS = ("train", "val", "test")
EXCLUDE = "exclude.txt"  # in data/<corpus>/: ids to leave out, one per line, "# " before a comment
Splits = dict[str, list[str]]
MAX_CAPTION = 10_000  # characters; what is longer is a file without line ends, and would take minutes to tokenize
# An id names files: separators, control characters, hidden names, drive letters and Windows' devices are not for it.
_NO_FILE_NAME = re.compile(
    r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|^$|^\.|[. ]$|^[a-z]:|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Corpus:
    """Clips, captions and split of one corpus folder, as found on disk."""

    root: Path
    clips: dict[str, Path]  # id -> video file
    captions: dict[str, list[str]]  # id -> captions, in the file's order
    own_splits: Splits | None = None  # the corpus' splits.json, or the split that its caption file holds
    features: dict[str, Path] = field(default_factory=dict)  # name -> folder of <id>.npy that the corpus brings
    problems: list[str] = field(default_factory=list)  # what was passed over, one line each
    excluded: list[str] = field(default_factory=list)  # usable but for data/<corpus>/exclude.txt

    @property
    def name(self) -> str:
        """The folder's name; artifacts go to data/<name>/."""
        return self.root.name

    @property
    def usable(self) -> list[str]:
        """Ids that have captions and a clip (or features in place of one), sorted."""
        visible = set(self.clips)
        for folder in self.features.values():
            visible.update(p.stem for p in folder.glob("*.npy"))
        return sorted(visible & set(self.captions))


def open_corpus(root: Path) -> Corpus:
    """Read a corpus folder.

    Raises UserError when the folder, its captions, or both clips and features are missing.
    """
    try:
        root = Path(root).expanduser().resolve(strict=True)
        found = root.is_dir()
    except (OSError, RuntimeError, ValueError):  # no such user's home, a NUL in the path
        found = False
    if not found:
        raise UserError(f"{root}: no such folder; a corpus is a folder with videos/ and captions.txt")
    problems: list[str] = []
    caption_file = find_caption_file(root)
    captions = read_captions(caption_file, problems)
    own = msrvtt_splits(caption_file) if caption_file.suffix == ".json" else None
    clips = find_clips(root, problems)
    feature_dirs = {p.name: p for p in sorted((root / "features").glob("*")) if p.is_dir()}
    if not clips and not feature_dirs:
        raise UserError(f"{root}: no clips in {' or '.join(VIDEO_DIRS)}/ and no features/<name>/*.npy")
    if (root / "splits.json").is_file():
        own = read_splits(root / "splits.json")
    corpus = Corpus(root, clips, captions, own, feature_dirs, problems)
    usable = set(corpus.usable)
    if not usable:
        raise UserError(f"{root}: no clip has a caption; the ids in {caption_file.name} must be the clips' file names")
    problems += [f"{i}: captions but no clip" for i in sorted(set(captions) - usable)]
    problems += [f"{i}: clip without captions" for i in sorted(set(clips) - set(captions))]
    if own is not None:
        lost = sorted(usable.difference(*own.values()))
        problems += [f"{i}: stands in none of the corpus' own splits, so it is not used" for i in lost]
    return corpus


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UserError for one that is not JSON, FileNotFoundError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def check_ids(ids: Iterable[Any], path: Path) -> None:
    """Raise UserError for an id that could not name a file on every system, or two that some systems take for one."""
    seen: dict[str, str] = {}
    for video_id in ids:
        if not is_file_name(video_id):
            raise UserError(
                f"{path}: {reprlib.repr(video_id)} cannot be an id, since ids name files on every system: text of at "
                "most 200 bytes without slashes and control characters, no dot in front, no dot or space at the end, "
                "no drive letter, no device such as CON; rename it"
            )
        other = seen.setdefault(unicodedata.normalize("NFC", video_id).lower(), video_id)
        if other != video_id:
            raise UserError(f"{path}: {other!r} and {video_id!r} are one name on many disks; rename one of them")


def is_file_name(video_id: Any) -> bool:
    """Whether an id can name files on every system, without leaving their folder."""
    return isinstance(video_id, str) and not _NO_FILE_NAME.search(video_id) and len(video_id.encode()) <= 200


def load_corpus(config: Config, progress: bool = True) -> Corpus:
    """The corpus of a configuration, without what its exclude.txt names.

    Renders the embedded corpus first when it is wanted and not there yet.
    """
    if config.corpus is None:
        from vcutils import sample

        sample.build(config.corpus_dir, clips=config.clips, progress=progress)
    return leave_out(open_corpus(config.corpus_dir), config.artifacts / EXCLUDE)


def leave_out(corpus: Corpus, path: Path) -> Corpus:
    """The corpus without the ids in a list such as `doctor --fix` writes; says on stderr how many they are.

    Raises UserError when the list cannot be read, or leaves nothing.
    """
    listed = set(read_excluded(path))
    excluded = [i for i in corpus.usable if i in listed]
    if not listed.intersection([*corpus.clips, *corpus.captions]):
        return corpus
    print(f"{path}: {len(excluded)} clip(s) are left out", file=sys.stderr)
    clips = {i: clip for i, clip in corpus.clips.items() if i not in listed}
    captions = {i: texts for i, texts in corpus.captions.items() if i not in listed}
    rest = replace(corpus, clips=clips, captions=captions, excluded=excluded)
    if not rest.usable:
        raise UserError(f"{path}: leaves no clip of {corpus.root}; take some ids out of the list")
    return rest


def read_excluded(path: Path) -> list[str]:
    """The ids in an exclude.txt; none when there is no such file. Raises UserError when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); write one id per line") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("# ")]


def find_clips(root: Path, problems: list[str]) -> dict[str, Path]:
    """Video files of a corpus by id (file name without suffix); two files of one id are a problem, the first stays."""
    clips: dict[str, Path] = {}
    folder = next((root / n for n in VIDEO_DIRS if (root / n).is_dir()), None)
    if folder is None:
        return clips
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            continue
        if not is_file_name(path.stem):
            problems.append(f"{path.name!r}: passed over, no other system can hold a file of this name; rename it")
        elif path.stem in clips:
            problems.append(f"{path.stem}: {path.name} has the same id as {clips[path.stem].name}; the latter is used")
        else:
            clips[path.stem] = path
    check_ids(clips, folder)
    return clips


def find_caption_file(root: Path) -> Path:
    """The caption file of a corpus folder: one of CAPTION_FILES, else its only .csv or .json.

    Raises UserError when there is none, or more than one to choose from.
    """
    for name in CAPTION_FILES:
        if (root / name).is_file():
            return root / name
    others = [p for p in sorted(root.iterdir()) if p.suffix in (".csv", ".json") and p.name not in NOT_CAPTIONS]
    if len(others) > 1:
        raise UserError(f"{root}: {', '.join(p.name for p in others)}: which holds the captions? Name it captions.txt")
    if not others:
        raise UserError(f"{root}: no {' or '.join(CAPTION_FILES)}; write one '<video_id> <caption>' per line")
    return others[0]


def read_captions(path: Path, problems: list[str] | None = None) -> dict[str, list[str]]:
    """Captions by video id.

    By suffix: .json (MSR-VTT or COCO), .csv (MSVD's raw corpus), else lines `<video_id> <caption>`. What cannot be
    read goes to `problems`, a line each. Raises UserError when nothing is left, and for ids that cannot name files.
    """
    problems = [] if problems is None else problems
    if path.suffix == ".json":
        pairs = _json_captions(path)
    else:
        kind, newline = (_csv_captions, "") if path.suffix == ".csv" else (_line_captions, None)
        try:
            with open(path, "rb") as start:
                encoding = "utf-16" if start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
            with open(path, encoding=encoding, errors="replace", newline=newline) as file:
                pairs = list(kind(path.name, file, problems))
        except (OSError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
    check_ids(dict.fromkeys(video_id for video_id, _ in pairs), path)
    captions: dict[str, list[str]] = {}
    unreadable = 0
    for video_id, text in pairs:
        caption = " ".join(text.split())
        if not caption.isprintable():  # a NUL, half a pair of surrogates from JSON
            caption = re.sub("[\0\ud800-\udfff]", "\ufffd", caption)
        if not caption:
            problems.append(f"{path.name}: an empty caption of {video_id!r}")
        elif len(caption) > MAX_CAPTION:
            problems.append(f"{path.name}: a caption of {video_id!r} has {len(text):,} characters; it is left out")
        else:
            captions.setdefault(video_id, []).append(caption)
            unreadable += "\ufffd" in caption
    if unreadable:
        problems.append(f"{path.name}: {unreadable} caption(s) with unreadable characters, now �; save it as UTF-8")
    if not captions:
        found = f" ({problems[0]})" if problems else ""
        raise UserError(f"{path}: no captions in it{found}; write one '<video_id> <caption>' per line")
    return captions


def _line_captions(name: str, file: TextIO, problems: list[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        video_id, *caption = line.split(maxsplit=1)
        if caption:
            yield video_id, caption[0]
        else:
            problems.append(f"{name}:{number}: no caption after the id {reprlib.repr(video_id)}")


def _csv_captions(name: str, file: TextIO, problems: list[str]) -> Iterator[tuple[str, str]]:
    """English rows of MSVD's raw corpus: VideoID, Start, End, …, Language, Description."""
    rows = csv.DictReader(file)
    if missing := {"VideoID", "Start", "End", "Language", "Description"} - set(rows.fieldnames or ()):
        raise UserError(f"{name}: not MSVD's raw corpus, the column(s) {', '.join(sorted(missing))} are missing")
    for row in rows:
        if row["Language"] == "English" and (row["Description"] or "").strip():
            yield f"{row['VideoID']}_{row['Start']}_{row['End']}", row["Description"]
        elif row["Language"] == "English":
            problems.append(f"{name}:{rows.line_num}: no caption")


def _json_captions(path: Path) -> list[tuple[str, str]]:
    """Captions of MSR-VTT ({"sentences": [{video_id, caption}]}) or COCO ({"images": …, "annotations": …})."""
    data = read_json(path)
    try:
        if "sentences" in data:
            pairs = [(s["video_id"], s["caption"]) for s in data["sentences"]]
        else:
            names = {image["id"]: Path(image.get("file_name", str(image["id"]))).stem for image in data["images"]}
            pairs = [(names[a["image_id"]], a["caption"]) for a in data["annotations"]]
        if odd := [value for pair in pairs for value in pair if not isinstance(value, str)]:
            raise TypeError(f"{reprlib.repr(odd[0])} is no text")
        return pairs
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: neither MSR-VTT's videodatainfo.json nor a COCO caption file ({type(error).__name__}: {error})"
        ) from error


def msrvtt_splits(path: Path) -> Splits | None:
    """The split that MSR-VTT's videodatainfo.json holds ({"videos": [{video_id, split}]}), None in other files."""
    splits: Splits = {s: [] for s in SPLITS}
    try:
        for video in read_json(path).get("videos", []):
            if (split := {"validate": "val"}.get(video.get("split"), video.get("split"))) in splits:
                splits[split].append(video["video_id"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its videos are not MSR-VTT's ({type(error).__name__}: {error})") from error
    return _checked(splits, path) if all(splits.values()) else None


def read_splits(path: Path) -> Splits:
    """A splits.json: {"train": [ids], "val": [ids], "test": [ids]}.

    Raises UserError for anything else, and for an id that stands in two splits.
    """
    data = read_json(path)
    if not isinstance(data, dict) or set(data) != set(SPLITS) or not all(isinstance(v, list) for v in data.values()):
        raise UserError(f'{path}: must be {{"train": [ids], "val": [ids], "test": [ids]}}')
    return _checked(data, path)


def _checked(splits: Splits, path: Path) -> Splits:
    """The splits of a file without repetitions. Raises UserError for bad ids, and for an id in two splits."""
    check_ids((video_id for split in SPLITS for video_id in splits[split]), path)
    seen: dict[str, str] = {}
    for split in SPLITS:
        for video_id in splits[split]:
            if seen.setdefault(video_id, split) != split:
                raise UserError(f"{path}: {video_id} stands in both {seen[video_id]} and {split}")
    return {split: list(dict.fromkeys(splits[split])) for split in SPLITS}


def make_splits(corpus: Corpus) -> tuple[Splits, str]:
    """The split to use and where it comes from: the corpus' own, MSVD's official one, or 70/15/15 with seed 42.

    Only usable clips are kept. A corpus of which no validation clip is at hand gives up some training clips for it;
    the test split is never touched.
    """
    allowed = set(corpus.usable)
    everything = sorted(allowed.union(corpus.excluded))  # to leave one out must not deal all the others anew
    if corpus.own_splits is not None:
        splits, origin = corpus.own_splits, "the corpus itself"
    elif (official := msvd_splits(everything)) is not None:
        splits, origin = official, "MSVD's official 1,200/100/670"
    else:
        splits, origin = random_splits(everything), "70/15/15 at random, seed 42"
    splits = {name: [i for i in splits[name] if i in allowed] for name in SPLITS}
    if not splits["val"] and len(splits["train"]) > 1:
        moved = splits["train"][:: max(2, min(7, len(splits["train"])))]
        splits["val"] = moved
        splits["train"] = [i for i in splits["train"] if i not in set(moved)]
        origin += f", {len(moved)} training clips moved to the empty validation split"
    for name in SPLITS:
        if not splits[name]:
            raise UserError(
                f"{corpus.root}: the {name} split ({origin}) has no clip that is at hand with captions; add some, "
                "or write your own splits.json there"
            )
    return splits, origin


def random_splits(ids: Iterable[str], seed: int = 42) -> Splits:
    """70/15/15 of the sorted ids, shuffled; at least one clip each in val and test when there are three."""
    ordered = sorted(ids)
    order = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    val = max(1, int(0.15 * len(order)))
    train = max(0, min(int(0.7 * len(order)), len(order) - val - 1))
    return {
        "train": sorted(order[:train]),
        "val": sorted(order[train : train + val]),
        "test": sorted(order[train + val :]),
    }


def msvd_splits(ids: Iterable[str]) -> Splits | None:
    """The official MSVD split of the given ids, or None unless every one of them is an MSVD clip."""
    table = json.loads(files("vcutils").joinpath("msvd_split.json").read_text(encoding="utf-8"))
    where = {table[s][i : i + 8]: s for s in SPLITS for i in range(0, len(table[s]), 8)}
    splits: Splits = {s: [] for s in SPLITS}
    for video_id in ids:
        split = where.get(hashlib.sha1(video_id.encode()).hexdigest()[:8])
        if split is None:
            return None
        splits[split].append(video_id)
    return splits


def save_splits(splits: Mapping[str, list[str]], path: Path) -> None:
    """Write the split in use as JSON, whole or not at all."""
    write_text(path, json.dumps(splits, indent=1))
