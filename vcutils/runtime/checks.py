"""What is checked in a corpus that a user brings: ids that name files, captions that can be read, splits apart."""

import re
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vcutils.runtime.settings import UserError

MAX_CAPTION = 10_000  # characters; what is longer is a file without line ends, and would take minutes to tokenize
# An id names files: separators, control characters, hidden names, drive letters and Windows' devices are not for it.
_NO_FILE_NAME = re.compile(
    r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|^$|^\.|[. ]$|^[a-z]:|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)",
    re.IGNORECASE,
)


def existing_folder(root: Path) -> Path:
    """The folder's absolute path. Raises UserError where there is none."""
    with suppress(OSError, RuntimeError, ValueError):  # no such user's home, a NUL in the path
        path = Path(root).expanduser().resolve(strict=True)
        if path.is_dir():
            return path
    raise UserError(f"{root}: no such folder; a corpus is a folder with videos/ and captions.txt")


def unused(
    captions: Iterable[str], clips: Iterable[str], usable: set[str], splits: Mapping[str, list[str]] | None
) -> list[str]:
    """What a corpus will not use, a line each: ids with captions or a clip alone, ids in none of its own splits."""
    lines = [f"{i}: captions but no clip" for i in sorted(set(captions) - usable)]
    lines += [f"{i}: clip without captions" for i in sorted(set(clips) - set(captions))]
    if splits is not None:
        lost = sorted(usable.difference(*splits.values()))
        lines += [f"{i}: stands in none of the corpus' own splits, so it is not used" for i in lost]
    return lines


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


def collect_clips(files: Iterable[Path], folder: Path, problems: list[str]) -> dict[str, Path]:
    """Video files by id, the file's name without its suffix; of two files of one id the first stays.

    Raises UserError for two ids that some systems take for one.
    """
    clips: dict[str, Path] = {}
    for path in files:
        if path.name.startswith("."):
            continue
        if not is_file_name(path.stem):
            problems.append(f"{path.name!r}: passed over, no other system can hold it; rename it")
        elif path.stem in clips:
            first = clips[path.stem].name
            problems.append(f"{path.stem}: {path.name} has the id of {first}; the latter is used")
        else:
            clips[path.stem] = path
    check_ids(clips, folder)
    return clips


def collect_captions(pairs: Iterable[tuple[str, str]], path: Path, problems: list[str]) -> dict[str, list[str]]:
    """Captions by id, without empty and endless ones. Raises UserError for bad ids, and when nothing is left."""
    pairs = list(pairs)
    check_ids(dict.fromkeys(video_id for video_id, _ in pairs), path)
    captions: dict[str, list[str]] = {}
    unreadable = 0
    for video_id, text in pairs:
        caption = re.sub("[\0\ud800-\udfff]", "\ufffd", " ".join(text.split()))  # a NUL, half a pair of surrogates
        if not caption:
            problems.append(f"{path.name}: an empty caption of {video_id!r}")
        elif len(caption) > MAX_CAPTION:
            size = f"{len(text):,} characters"
            problems.append(f"{path.name}: a caption of {video_id!r} has {size}; it is left out")
        else:
            captions.setdefault(video_id, []).append(caption)
            unreadable += "\ufffd" in caption
    if unreadable:
        problems.append(f"{path.name}: {unreadable} caption(s) with unreadable characters, now �; save it as UTF-8")
    if not captions:
        reason = f" ({problems[0]})" if problems else ""
        raise UserError(f"{path}: no captions in it{reason}; write one '<video_id> <caption>' per line")
    return captions


def checked_splits(splits: Any, path: Path) -> dict[str, list[str]]:
    """The splits without repetitions. Raises UserError for another form, bad ids, and an id in two splits."""
    names = ("train", "val", "test")
    is_dict = isinstance(splits, dict) and set(splits) == set(names)
    if not is_dict or not all(isinstance(ids, list) for ids in splits.values()):
        raise UserError(f'{path}: must be {{"train": [ids], "val": [ids], "test": [ids]}}')
    check_ids((video_id for split in names for video_id in splits[split]), path)
    seen: dict[str, str] = {}
    for split in names:
        for video_id in splits[split]:
            if seen.setdefault(video_id, split) != split:
                raise UserError(f"{path}: {video_id} stands in both {seen[video_id]} and {split}")
    return {split: list(dict.fromkeys(splits[split])) for split in names}
