"""Features of clips by id, from a folder of `<id>.npy` files, or from its parts/ where it has them (`runtime.arrow`).

Parts are for corpora of tens of thousands of clips and more: they open without a look at every file.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vcutils.runtime.files import reading, write_text, writing
from vcutils.runtime.settings import UserError

MANIFEST = "manifest.jsonl"
PARTS, INDEX = "parts", "index.arrow"
CACHE_BYTES = 2**30  # of features kept in memory once read; what goes beyond is read again


def backbone_of(folder: Path | str) -> str:
    """The backbone's name in the path of its features: all behind features/, since `timm/x` is a folder in a folder."""
    return Path(folder).as_posix().rpartition("/features/")[2]


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest rows by video id, of all shards' files. Raises UserError for a broken one."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("manifest*.jsonl")):
        with reading(path, "not a manifest", "delete it and extract again"):
            try:
                lines = path.read_bytes().split(b"\n")
            except FileNotFoundError:  # a shard has just merged it into the one manifest
                return read_manifest(folder)
            if b'{"id": "'.startswith(lines[-1][:8]) and not lines[-1].endswith(b"}"):
                lines.pop()  # a killed process did not finish it, or the file's end
            for line in lines:
                row = json.loads(line)
                rows[row["id"]] = dict(row)
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row at the end of a manifest, where it counts for more than an earlier one of its id."""
    with writing(path), open(path, "ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def mend_manifest(path: Path) -> None:
    """Cut off a last line that a killed process did not finish, so that rows can be appended."""
    if path.is_file():
        with writing(path), open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def write_manifest(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write manifest rows by id as one JSON object a line, sorted by id."""
    write_text(path, "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in sorted(rows)))


@dataclass
class Report:
    """What an extraction did."""

    folder: Path
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # done by an earlier run
    failed: dict[str, str] = field(default_factory=dict)  # id -> reason
    frames: int = 0
    seconds: float = 0.0


class FeatureStore:
    """Features (T, D) of clips by id, from the folder's parts/ or else its files; `ids` are those at hand.

    Files that a manifest does not know are left out. Raises UserError when there are no features, when the manifest is
    broken or of two kinds of features, or when the parts are broken or not of this manifest.
    """

    def __init__(self, folder: Path, packed: bool = True) -> None:
        self.folder = Path(folder)
        self.extracted: dict[str, Any] | None  # backbone, weights and num_frames of all clips; None: nothing tells
        self.ids: Collection[str]
        self._parts: Any = None
        self._cache: dict[str, np.ndarray] = {}
        self._cached = 0  # bytes
        if packed and (self.folder / PARTS).is_dir():
            self._open_parts()
            return
        self.ids = ids = file_ids(self.folder)
        if self.manifest:
            self.ids = ids = ids & {i for i, row in self.manifest.items() if "error" not in row}
        if not ids:
            raise UserError(f"{folder}: no features; run notebook 01 or `python -m vcutils extract CORPUS`")
        self.extracted = one_kind((self.manifest[i] for i in sorted(ids & set(self.manifest))), self.folder)
        self._first = min(ids)
        self.dim = self[self._first].shape[1]

    @cached_property
    def manifest(self) -> Mapping[str, dict[str, Any]]:
        """What was extracted, rows by id; empty for features that a corpus brought. Raises UserError when broken."""
        return read_manifest(self.folder) or (self._parts.each(self._parts.row) if self._parts else {})

    def usable(self, ids: list[str], captions: Mapping[str, Any]) -> list[str]:
        """Those of the ids that have features and captions; an index' ids have them, and are no list."""
        return [i for i in ids if i in self.ids and i in captions] if isinstance(ids, list) else ids

    def _open_parts(self) -> None:
        from vcutils.runtime.arrow import Parts  # slow to import

        self._parts = parts = Parts(self.folder)
        self.ids, self.dim, self.extracted, self._first = parts.ids, parts.dim, parts.about["extracted"], parts.ids[0]
        if not (packed := parts.about["manifest"]):  # parts of no files, such as a cluster's
            return
        changed = ""
        if any(self.folder.glob("manifest*.jsonl")):  # knows of every file
            changed = "its manifest" if packed != manifest_digest(self.folder) else ""
        elif unknown := {i for i in file_ids(self.folder) if i not in parts.ids}:
            changed = f"{min(unknown)}.npy"
        if changed:
            advice = f"run `python -m vcutils pack {self.folder}` again, or delete the parts"
            raise UserError(f"{self.folder / PARTS}: {changed} is not what was packed; {advice}")

    def __getitem__(self, video_id: str) -> np.ndarray:
        """Features (T, D) of one clip, float16 or float32. Raises UserError for missing and unusable ones."""
        if video_id in self._cache:
            return self._cache[video_id]
        if video_id not in self.ids:
            raise UserError(f"{self.folder}: no features of {video_id}; extract them first")
        if self._parts:
            return self._checked(self._parts[video_id], f"{self.folder / PARTS}: {video_id}", "pack")
        path = self.folder / f"{video_id}.npy"
        with reading(path, "not a feature array", "delete it and extract again"), open(path, "rb") as file:
            features = np.lib.format.read_array(file, allow_pickle=False)  # np.load would also take archives
        if features.dtype.kind == "f" and features.dtype not in (np.float16, np.float32):
            with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused below
                features = features.astype(np.float32)
        if features.ndim > 2 and features.size:  # e.g. (T, D, 1, 1) of a network that kept its pooled axes
            features = features.reshape(len(features), -1)
        features = self._checked(features, str(path), "extract")
        if (frames := self.manifest.get(video_id, {}).get("T", len(features))) != len(features):
            raise UserError(f"{path}: {len(features)} frames, its manifest says {frames}; delete it and extract again")
        if self._cached + features.nbytes <= CACHE_BYTES:
            self._cache[video_id] = features
            self._cached += features.nbytes
        return features

    def _checked(self, features: np.ndarray, where: str, again: str) -> np.ndarray:
        """The array itself. Raises UserError, with the stage to run `again`, for one that no model could use."""
        if features.ndim != 2 or not features.size or features.dtype.kind != "f":
            raise UserError(f"{where}: must be a float array (T, D), is {features.dtype} {features.shape}")
        bits = features.view(np.uint16) & 0x7FFF if features.dtype == np.float16 else None  # isfinite is slow for these
        if not (np.isfinite(features).all() if bits is None else bits.max() < 0x7C00):
            raise UserError(f"{where}: holds NaN or infinite values; delete the file and {again} again")
        if features.shape[1] != getattr(self, "dim", features.shape[1]):
            raise UserError(f"{where}: {features.shape[1]} numbers per frame, {self._first}.npy has {self.dim}")
        return features


def file_ids(folder: Path) -> set[str]:
    """Ids of the `<id>.npy` files of a folder; none where there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {name[:-4] for name in names if name.endswith(".npy") and not name.startswith(".")}


def manifest_digest(folder: Path) -> str:
    """What tells a manifest from that of another extraction."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("manifest*.jsonl")))).hexdigest()


def one_kind(rows: Iterable[Mapping[str, Any]], folder: Path) -> dict[str, Any] | None:
    """Backbone, weights and num_frames of all these rows; None for no rows. Raises UserError for two kinds of them."""
    first: dict[str, Any] | None = None
    for row in rows:
        kind = {name: row.get(name) for name in ("backbone", "weights", "num_frames")}
        if first is None:
            first, first_id = kind, row["id"]
        if kind != first:
            raise UserError(
                f"{folder}: by its manifest {first_id} has {in_words(first)}, {row['id']} {in_words(kind)}; "
                "delete the folder and extract all clips alike"
            )
    return first


def in_words(extracted: Mapping[str, Any] | None) -> str:
    """Which features these are, in words."""
    return "features without a manifest" if extracted is None else ", ".join(f"{k} {v}" for k, v in extracted.items())
