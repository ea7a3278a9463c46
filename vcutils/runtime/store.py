"""Features of clips by id, from a folder of `<id>.npy` files or from the one file that `pack` makes of them.

A pack is for corpora of tens of thousands of clips: it opens without a look at every file, and is read where the disk
is fastest. It is a safetensors file, a tensor (T, D) per clip.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tqdm.auto import tqdm

from vcutils.runtime.files import holding, reading, replacing, write_text
from vcutils.runtime.machine import is_quiet
from vcutils.runtime.settings import UserError

MANIFEST = "manifest.jsonl"
PACK = "packed.safetensors"
CACHE_BYTES = 2**30  # of features kept in memory once read; what goes beyond is read again
_DTYPES: dict[str, np.dtype] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}  # safetensors' names


def backbone_of(folder: Path | str) -> str:
    """The backbone's name in the path of its features: all behind features/, since `timm/x` is a folder in a folder."""
    return Path(folder).as_posix().rpartition("/features/")[2]


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest rows by video id, of all shards' files. Raises UserError for a broken one."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("manifest*.jsonl")):
        with reading(path, "not a manifest", "delete it and extract again"):
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError:  # a shard has just merged it into the one manifest
                return read_manifest(folder)
            for line in text.splitlines():
                row = json.loads(line)
                rows[row["id"]] = dict(row)
    return rows


def write_manifest(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write manifest rows by id as one JSON object a line, sorted by id."""
    write_text(path, "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in sorted(rows)))


class FeatureStore:
    """Features (T, D) of clips by id, from the folder's pack or else its files; `ids` are those at hand.

    Files that a manifest does not know are left out. Raises UserError when there are no features, when the manifest is
    broken or of two kinds of features, or when the pack is broken or not of this manifest.
    """

    def __init__(self, folder: Path, packed: bool = True) -> None:
        self.folder = Path(folder)
        self.extracted: dict[str, Any] | None  # backbone, weights and num_frames of all clips; None: nothing tells
        self._pack: dict[str, tuple[np.dtype, list[int], int]] = {}  # data type, shape, position in the file
        self._cache: dict[str, np.ndarray] = {}
        self._cached = 0  # bytes
        if packed and (self.folder / PACK).is_file():
            self.extracted = self._open_pack()  # the manifest, large by now, is read when it is needed
            self.ids = set(self._pack)
        else:
            self.ids = _file_ids(self.folder)
            if self.manifest:
                self.ids &= {i for i, row in self.manifest.items() if "error" not in row}
            self.extracted = self._extracted()
        if not self.ids:
            raise UserError(f"{folder}: no features; run notebook 01 or `python -m vcutils extract CORPUS`")
        self._first = min(self.ids)
        self.dim = self[self._first].shape[1]

    @cached_property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """What was extracted, rows by id; empty for features that a corpus brought. Raises UserError when broken."""
        return read_manifest(self.folder)

    def _extracted(self) -> dict[str, Any] | None:
        names = ("backbone", "weights", "num_frames")
        known = sorted(self.ids & set(self.manifest))
        kinds = [{name: self.manifest[i].get(name) for name in names} for i in known]
        for video_id, kind in zip(known, kinds, strict=True):
            if kind != kinds[0]:
                raise UserError(
                    f"{self.folder}: by its manifest {known[0]} has {in_words(kinds[0])}, {video_id} {in_words(kind)}; "
                    "delete the folder and extract all clips alike"
                )
        return kinds[0] if kinds else None

    def _open_pack(self) -> dict[str, Any] | None:
        """Note where each clip lies in the pack; what it was extracted with."""
        path = self.folder / PACK
        with reading(path, "not a whole pack", f"delete it, or pack {self.folder} again"):
            position = path.stat().st_size
            with safe_open(path, framework="np") as file:  # refuses gaps between clips, and missing or spare bytes
                about = file.metadata()
                for video_id in reversed(file.offset_keys()):
                    entry = file.get_slice(video_id)
                    dtype, shape = _DTYPES[entry.get_dtype()], entry.get_shape()
                    position -= math.prod(shape) * dtype.itemsize
                    self._pack[video_id] = dtype, shape, position
            extracted, manifest = json.loads(about["extracted"]), about["manifest"]
        changed = ""
        if any(self.folder.glob("manifest*.jsonl")):  # knows of every file
            changed = "its manifest" if manifest != _manifest_digest(self.folder) else ""
        elif unknown := _file_ids(self.folder) - set(self._pack):
            changed = f"{min(unknown)}.npy"
        if changed:
            advice = f"run `python -m vcutils pack {self.folder}` again, or delete the pack"
            raise UserError(f"{path}: {changed} is not what was packed; {advice}")
        return extracted

    def __getitem__(self, video_id: str) -> np.ndarray:
        """Features (T, D) of one clip, float16 or float32. Raises UserError for missing and unusable ones."""
        if video_id in self._cache:
            return self._cache[video_id]
        if video_id not in self.ids:
            raise UserError(f"{self.folder}: no features of {video_id}; extract them first")
        if self._pack:
            return self._read_packed(video_id)
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

    def _read_packed(self, video_id: str) -> np.ndarray:
        """Features from the pack; no memory map, since a process dies of one whose file is cut meanwhile."""
        dtype, shape, position = self._pack[video_id]
        path = self.folder / PACK
        with reading(path, "was cut while it was in use", f"pack {self.folder} again"), open(path, "rb") as file:
            file.seek(position)
            data = bytearray(file.read(math.prod(shape) * dtype.itemsize))
            features = np.frombuffer(data, dtype).reshape(shape)
        return self._checked(features, f"{path}: {video_id}", "pack")

    def _checked(self, features: np.ndarray, where: str, again: str) -> np.ndarray:
        """The array itself. Raises UserError, with the stage to run `again`, for one that no model could use."""
        if features.ndim != 2 or not features.size or features.dtype.kind != "f":
            raise UserError(f"{where}: must be a float array (T, D), is {features.dtype} {features.shape}")
        if not np.isfinite(features).all():
            raise UserError(f"{where}: holds NaN or infinite values; delete the file and {again} again")
        if features.shape[1] != getattr(self, "dim", features.shape[1]):
            raise UserError(f"{where}: {features.shape[1]} numbers per frame, {self._first}.npy has {self.dim}")
        return features


def pack(folder: Path, progress: bool = True) -> Path:
    """Write all features of a folder into one file, read in place of theirs. Raises UserError for unusable ones."""
    folder = Path(folder)
    with holding(folder, "pack"), replacing(folder / PACK) as temporary:
        store, digest, begin = FeatureStore(folder, packed=False), _manifest_digest(folder), 0
        header: dict[str, Any] = {"__metadata__": {"manifest": digest, "extracted": json.dumps(store.extracted)}}
        # Reserve space for the header; fill it in at the end. The format allows blanks behind it.
        room = sum(len(json.dumps(i)) + 120 for i in store.ids) + 2 * len(json.dumps(header)) + 64
        room += -room % 8
        with open(temporary, "wb") as file:
            file.seek(8 + room)
            for video_id in tqdm(sorted(store.ids), desc="pack", unit="clip", leave=False, disable=is_quiet(progress)):
                features = store[video_id]
                name = "F16" if features.dtype == np.float16 else "F32"
                offsets = [begin, begin + features.nbytes]
                header[video_id] = {"dtype": name, "shape": features.shape, "data_offsets": offsets}
                begin += file.write(features.astype(_DTYPES[name]).tobytes())
            file.seek(0)
            file.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))
        if _manifest_digest(folder) != digest:
            raise UserError(f"{folder}: was extracted to while it was packed; pack it again")
    return folder / PACK


def _file_ids(folder: Path) -> set[str]:
    """Ids of the `<id>.npy` files of a folder; none where there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {name[:-4] for name in names if name.endswith(".npy") and not name.startswith(".")}


def _manifest_digest(folder: Path) -> str:
    """What tells a manifest from that of another extraction."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("manifest*.jsonl")))).hexdigest()


def in_words(extracted: Mapping[str, Any] | None) -> str:
    """Which features these are, in words."""
    return "features without a manifest" if extracted is None else ", ".join(f"{k} {v}" for k, v in extracted.items())
