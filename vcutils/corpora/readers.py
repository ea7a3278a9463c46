"""Corpora as they are published: captions of MSVD, MSR-VTT and COCO, official splits; the user's exclude list."""

import csv
import hashlib
import json
import reprlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.resources import files
from io import StringIO
from pathlib import Path

from vcutils import corpus
from vcutils.config import UserError
from vcutils.corpus import SPLITS, Captions, Corpus, Splits
from vcutils.runtime.checks import checked_splits, collect_captions, existing_folder
from vcutils.runtime.files import read_json, read_text, reading, write_text

CAPTION_FILES = ("captions.txt", "AllVideoDescriptions.txt", "videodatainfo.json")
NOT_CAPTIONS = ("splits.json", "events.json", "sample.json")
EXCLUDE = "exclude.txt"  # in data/<corpus>/: ids to leave out, one per line, "# " before a comment


def open_corpus(root: Path) -> Corpus:
    """A corpus folder whose captions have any known format, with MSVD's official split where it is MSVD.

    Raises UserError when the folder, its captions, or both clips and features are missing.
    """
    problems: list[str] = []
    path = find_caption_file(existing_folder(root))
    captions = read_captions(path, problems)
    own_splits = msrvtt_splits(path) if path.suffix == ".json" else None
    opened = corpus.open_corpus(root, captions, own_splits, problems)
    if opened.own_splits is None and (official := msvd_splits(opened.usable)):
        return replace(opened, own_splits=official, split_origin="MSVD's official 1,200/100/670")
    return opened


def leave_out(opened: Corpus, path: Path) -> Corpus:
    """The corpus without the ids in a list such as `doctor --fix` writes; says on stderr how many they are.

    Raises UserError when the list cannot be read, or leaves nothing.
    """
    listed = set(read_excluded(path))
    if listed.isdisjoint([*opened.clips, *opened.captions]):
        return opened
    clips = {i: clip for i, clip in opened.clips.items() if i not in listed}
    captions = {i: texts for i, texts in opened.captions.items() if i not in listed}
    excluded = [i for i in opened.usable if i in listed]
    print(f"{path}: {len(excluded)} clip(s) are left out", file=sys.stderr)
    rest = replace(opened, clips=clips, captions=captions, excluded=excluded)
    if not rest.usable:
        raise UserError(f"{path}: leaves no clip of {opened.root}; take some ids out of the list")
    return rest


def read_excluded(path: Path) -> list[str]:
    """The ids in an exclude.txt; none when there is no such file. Raises UserError when it cannot be read."""
    if not path.exists():
        return []
    with reading(path, "cannot be read as UTF-8 text", "write one id per line"):
        return excluded_ids(path.read_text(encoding="utf-8-sig"))


def excluded_ids(text: str) -> list[str]:
    """The ids in the text of an exclude.txt."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ")]


def exclude(path: Path, reasons: dict[str, str]) -> str:
    """Add ids, each with its reason, to an exclude.txt; what stands in it stays. Returns what was done, in words."""
    known = read_excluded(path)
    if not reasons:
        return f"nothing, no clip needs to be left out beyond the {len(known)} of {path}"
    before = path.read_text(encoding="utf-8-sig").rstrip("\n") + "\n" if known else ""
    rows = [f"# {' '.join(reason.split())}\n{i}\n" for i, reason in sorted(reasons.items())]
    write_text(path, before + "".join(rows))
    return f"{path}: {len(rows)} clip(s) more to leave out; delete a line to take its clip in again"


def find_caption_file(root: Path) -> Path:
    """The caption file of a corpus folder: one of CAPTION_FILES, else its only .csv or .json.

    Raises UserError when there is none, or more than one to choose from.
    """
    found = [root / name for name in CAPTION_FILES if (root / name).is_file()][:1]
    found = found or [p for p in root.iterdir() if p.suffix in (".csv", ".json") and p.name not in NOT_CAPTIONS]
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise UserError(f"{root}: {names}: which holds the captions? Name it captions.txt")
    if not found:
        raise UserError(f"{root}: no {' or '.join(CAPTION_FILES)}; write one '<video_id> <caption>' per line")
    return found[0]


def read_captions(path: Path, problems: list[str] | None = None) -> Captions:
    """Captions by video id.

    By suffix: .json (MSR-VTT or COCO), .csv (MSVD's raw corpus), else lines `<video_id> <caption>`. What cannot be
    read goes to `problems`, a line each. Raises UserError when nothing is left, and for ids that cannot name files.
    """
    problems = [] if problems is None else problems
    readers = {".json": _json_captions, ".csv": _csv_captions}
    if path.suffix in readers:
        return collect_captions(readers[path.suffix](path), path, problems)
    return corpus.read_captions(path, problems)


def _csv_captions(path: Path) -> list[tuple[str, str]]:
    """English rows of MSVD's raw corpus: VideoID, Start, End, …, Language, Description."""
    with reading(path, "not MSVD's raw corpus", "take the published file"):
        rows = csv.DictReader(StringIO(read_text(path)))
        english = [row for row in rows if row["Language"] == "English"]
        return [(f"{row['VideoID']}_{row['Start']}_{row['End']}", row["Description"] or "") for row in english]


def _json_captions(path: Path) -> list[tuple[str, str]]:
    """Captions of MSR-VTT ({"sentences": [{video_id, caption}]}) or COCO ({"images": …, "annotations": …})."""
    data = read_json(path)
    with reading(path, "neither MSR-VTT's videodatainfo.json nor a COCO caption file", "take the published file"):
        if "sentences" in data:
            pairs = [(s["video_id"], s["caption"]) for s in data["sentences"]]
        else:
            names = {image["id"]: Path(image.get("file_name", str(image["id"]))).stem for image in data["images"]}
            pairs = [(names[a["image_id"]], a["caption"]) for a in data["annotations"]]
        if odd := [value for pair in pairs for value in pair if not isinstance(value, str)]:
            raise TypeError(f"{reprlib.repr(odd[0])} is no text")
    return pairs


def msrvtt_splits(path: Path) -> Splits | None:
    """The split that MSR-VTT's videodatainfo.json holds ({"videos": [{video_id, split}]}), None in other files."""
    data = read_json(path)
    with reading(path, "its videos are not MSR-VTT's", "take the published file"):
        videos = [(video["video_id"], video.get("split")) for video in data.get("videos", [])]
    names = {"train": ("train",), "val": ("val", "validate"), "test": ("test",)}
    splits = {split: [i for i, name in videos if name in names[split]] for split in SPLITS}
    return checked_splits(splits, path) if all(splits.values()) else None


def msvd_splits(ids: Iterable[str]) -> Splits | None:
    """The official MSVD split of the given ids, or None unless every one of them is an MSVD clip."""
    split_of = msvd_split_of(ids)
    if None in split_of.values():
        return None
    return {split: [i for i in split_of if split_of[i] == split] for split in SPLITS}


def msvd_split_of(ids: Iterable[str]) -> dict[str, str | None]:
    """The official MSVD split of each id; None for one that is not MSVD's."""
    # msvd_split.json holds, for each split, the first 8 digits of its ids' SHA-1, one behind the other.
    table = json.loads(files("vcutils.corpora").joinpath("msvd_split.json").read_text(encoding="utf-8"))
    split_of = {table[split][i : i + 8]: split for split in SPLITS for i in range(0, len(table[split]), 8)}
    return {i: split_of.get(hashlib.sha1(i.encode()).hexdigest()[:8]) for i in ids}
