"""Features in Arrow files, for corpora of 100,000 clips to many millions: one schema for all that write them.

A folder `parts/` of `*.arrow` files (Arrow IPC streams, which Hugging Face `datasets` maps into memory) is the data
set: no step merges them. An index beside it, made of the parts, says where each clip is, and may hold the corpus'
captions and splits. All of this needs `vcutils[scale]`; nothing here is imported where there are no parts.
"""

import json
import shutil
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from importlib import import_module
from itertools import accumulate, chain, count
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from vcutils.runtime.files import holding, reading, replacing, writing
from vcutils.runtime.machine import is_quiet
from vcutils.runtime.settings import UserError
from vcutils.runtime.store import INDEX, PARTS, FeatureStore, file_ids, manifest_digest, one_kind

PART_BYTES = 2**28  # of features in a file that `pack` writes
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream


def schema() -> Any:
    """The columns of a part, a `pyarrow.Schema`; a row per clip, failed ones too. Raises UserError without pyarrow.

    `features` holds (T, D) numbers in C order and little-endian, of type `dtype` (f2 or f4); null for a failed clip.
    `row` is the clip's row of a manifest as JSON; `key`, id@bytes-mtime of the clip's file, changes with the file.
    """
    pa = _needs("pyarrow")
    text, size = pa.string(), pa.int32()
    columns = {"id": text, "key": text, "features": pa.large_binary(), "dtype": text, "T": size, "D": size, "row": text}
    return pa.schema(list(columns.items()))


def clip_key(row: Mapping[str, Any]) -> str:
    """What a checkpoint remembers of a clip, by its manifest row: it changes with the file."""
    return f"{row['id']}@" + (f"{row['bytes']}-{row['mtime']}" if "bytes" in row else "")


def clip_record(row: Mapping[str, Any], features: np.ndarray | None) -> dict[str, Any]:
    """One row of a part, from a clip's manifest row and its features (T, D); None for a clip that failed."""
    record = {"id": row["id"], "key": clip_key(row), "row": json.dumps(row, ensure_ascii=False)}
    if features is None:
        return record | {"features": None, "dtype": "f2", "T": 0, "D": 0}
    dtype = "f2" if features.dtype == np.float16 else "f4"
    frames, size = features.shape
    return record | {"features": features.astype(f"<{dtype}").tobytes(), "dtype": dtype, "T": frames, "D": size}


def pack(folder: Path, progress: bool = True, corpus: tuple[Mapping, Mapping, Mapping] | None = None) -> Path:
    """Write the features of a folder's files into parts/, which is read in their place; index them, or parts alone.

    `corpus` (captions, splits, `corpus_state`) goes into the index, so that training need not read it.
    Raises UserError for unusable features, for parts that did not come from these files, and without `vcutils[scale]`.
    """
    folder, columns = Path(folder), schema()
    parts, temporary = folder / PARTS, folder / ".tmp-parts"
    with holding(folder, "pack"), writing(folder):
        if file_ids(folder) or not parts.is_dir():
            if any(not path.name.startswith("packed-") for path in parts.glob("*.arrow")):
                raise UserError(f"{parts}: holds clips of another extraction; move {folder}/*.npy or {parts} away")
            shutil.rmtree(temporary, ignore_errors=True)  # a killed pack's
            try:
                store, digest = FeatureStore(folder, packed=False), manifest_digest(folder)
                temporary.mkdir()
                ids = tqdm(sorted(store.ids), desc="pack", unit="clip", leave=False, disable=is_quiet(progress))
                records = (clip_record(store.manifest.get(i, {"id": i}), store[i]) for i in ids)
                failed = (clip_record(row, None) for row in store.manifest.values() if "error" in row)
                _write(temporary, chain(records, failed), columns.with_metadata({"manifest": digest}))
                if manifest_digest(folder) != digest:
                    raise UserError(f"{folder}: was extracted to while it was packed; pack it again")
                shutil.rmtree(parts, ignore_errors=True)
                temporary.rename(parts)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        (folder / INDEX).unlink(missing_ok=True)
        opened = Parts(folder)
        if corpus:
            opened.join(*corpus)
        _save(folder / INDEX, opened.index.replace_schema_metadata({"about": json.dumps(opened.about)}))
    return parts


def corpus_state(root: Path, artifacts: Path) -> dict[str, list[int]]:
    """Size and time of change of the files that captions and splits come from."""
    files = [*sorted(root.iterdir()), artifacts / "splits.json", artifacts / "exclude.txt"]
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}


def _write(folder: Path, records: Iterable[Mapping[str, Any]], columns: Any) -> None:
    """Write rows into packed-00000.arrow, packed-00001.arrow, …"""
    batch, size, source = [], 0, iter(records)
    for number in count():
        for record in source:
            batch.append(record)
            size += len(record["features"] or b"") + len(record["row"])
            if size > PART_BYTES:
                break
        if not batch:
            return
        _save(folder / f"packed-{number:05}.arrow", _needs("pyarrow").Table.from_pylist(batch, columns))
        batch, size = [], 0


def _save(path: Path, table: Any) -> None:
    pa = _needs("pyarrow")
    with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)


class Ids(Sequence[str]):
    """Ids of an index' rows from `start` to `stop`, which are read as they are asked for."""

    def __init__(self, parts: "Parts", start: int, stop: int) -> None:
        self._parts, self._range = parts, range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, position: Any) -> Any:
        chosen = self._range[position]
        column = self._parts.column("id")
        if isinstance(chosen, int):
            return column[chosen].as_py()
        if chosen.step == 1:
            return Ids(self._parts, chosen.start, chosen.stop)
        return column.take(_needs("pyarrow").array(chosen)).to_pylist()

    def __iter__(self) -> Iterator[str]:
        for start in range(self._range.start, self._range.stop, 10_000):
            stop = min(start + 10_000, self._range.stop)
            yield from self._parts.column("id").slice(start, stop - start).to_pylist()

    def __contains__(self, video_id: object) -> bool:
        return self._parts.position(video_id) in self._range


class ByIds(Mapping[str, Any]):
    """A mapping over the ids of an index whose values are read as they are asked for."""

    def __init__(self, ids: Ids, read: Callable[[str], Any]) -> None:
        self._ids, self._read = ids, read

    def __getitem__(self, video_id: str) -> Any:
        if video_id not in self._ids:
            raise KeyError(video_id)
        return self._read(video_id)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)


class Parts:
    """The clips of a folder's parts/ with features, mapped into memory and found by an index of them.

    The index is read from its file, or made where that is not of these parts. Raises UserError for parts that are cut
    or otherwise broken, and without `vcutils[scale]`.
    """

    def __init__(self, folder: Path) -> None:
        concat_tables = _needs("datasets.table").concat_tables
        self.folder, self._file, self._advice = folder, folder / INDEX, f"delete it, or pack {folder} again"
        files = {path.name: path.stat() for path in sorted((folder / PARTS).glob("[!.]*.arrow"))}
        state = {name: [file.st_size, file.st_mtime_ns] for name, file in files.items()}
        tables = [_mapped(folder / PARTS / name, f"delete it, or pack {folder} again") for name in files]
        if not tables:
            raise UserError(f"{folder / PARTS}: no *.arrow files; extract or pack again, or delete the folder")
        for name, table in zip(files, tables, strict=True):
            if not table.schema.equals(schema()):
                raise UserError(f"{folder / PARTS / name}: not a part, its columns are others; move it away")
        self.table = concat_tables(tables)
        self.index: Any = None
        if (folder / INDEX).is_file():
            self.index = _mapped(folder / INDEX, f"delete it, or pack {folder} again").table
            with self._reading():
                self.about = json.loads(self.index.schema.metadata[b"about"])
        if self.index is None or self.about["parts"] != state:
            digests = {(table.schema.metadata or {}).get(b"manifest", b"").decode() for table in tables}
            self.about = {"parts": state, "manifest": max(digests), "corpus": None}
            self._make_index()
        columns = ("row", "hash", "hashed")
        self._rows, self._hashes, self._hashed = (self.column(name).to_numpy() for name in columns)
        self.ids = Ids(self, 0, len(self._rows))
        chunks = self.table.table["id"].chunks
        self._starts = [0, *accumulate(map(len, chunks))]
        self._buffers = {
            name: list(map(_buffers, self.table.table[name].chunks)) for name in ("id", "features", "dtype", "row")
        }
        self.dim: int = self.about["dim"]

    def __reduce__(self) -> tuple:  # worker processes open the files themselves
        return Parts, (self.folder,)

    def column(self, name: str) -> Any:
        """A column of the index as one Arrow array."""
        return self.index.column(name).chunk(0)

    def position(self, video_id: object) -> int:
        """Which row of the index a clip is; -1 for one that is not there."""
        code = np.uint64(_hash(str(video_id)))
        i, ids = int(self._hashes.searchsorted(code)), self.column("id")
        while i < len(self._hashes) and self._hashes[i] == code:
            if ids[position := int(self._hashed[i])].as_py() == video_id:
                return position
            i += 1
        return -1

    def _reading(self) -> AbstractContextManager:
        return reading(self._file, "not an index of these parts", self._advice)

    def _values(self, video_id: str, *columns: str) -> list[Any]:
        """What stands in a clip's row, as bytes where they lie in the file: slicing a table takes longer."""
        with self._reading():
            row = int(self._rows[self.position(video_id)])
            part = bisect(self._starts, row) - 1
            row -= self._starts[part]
            values = []
            for name in ("id", *columns):
                offsets, data = self._buffers[name][part]
                values.append(data[offsets[row] : offsets[row + 1]])
            if values[0] != video_id.encode():
                raise ValueError(f"{video_id} is elsewhere")
        return values[1:]

    def each(self, read: Callable[[str], Any]) -> ByIds:
        """`read(id)` of the ids."""
        return ByIds(self.ids, read)

    def __getitem__(self, video_id: str) -> np.ndarray:
        """Features (T, D) of one clip that is among the ids: a copy, which outlives the file."""
        numbers, dtype = self._values(video_id, "features", "dtype")
        return np.frombuffer(numbers, "<" + str(dtype, "ascii")).reshape(-1, self.dim).copy()

    def row(self, video_id: str) -> dict[str, Any]:
        """The manifest's row of a clip that is among the ids."""
        return json.loads(bytes(self._values(video_id, "row")[0]))

    def _make_index(self) -> None:
        """Find the clips with features; of rows of one id the first counts. Raises UserError for unusable rows."""
        pa, pc = _needs("pyarrow"), _needs("pyarrow.compute")
        with reading(self.folder / PARTS, "not a whole dataset", f"extract or pack {self.folder} again"):
            self.table.table.validate(full=True)
            table = self.table.table.select(["id", "features", "dtype", "T", "D"])
            ids = table["id"].cast(pa.large_string()).combine_chunks()
            rows = pc.sort_indices(ids).to_numpy()  # stable
            ids = ids.take(pa.array(rows))
            counts = np.asarray(table["features"].is_valid())[rows]
            counts[1:] &= np.asarray(pc.not_equal(ids[1:], ids[:-1]))
            ids, rows = ids.filter(pa.array(counts)), rows[counts]
            frames, sizes = (table[name].to_numpy().astype(np.int64)[rows] for name in ("T", "D"))
            width = np.where(pc.equal(table["dtype"], "f2").to_numpy(zero_copy_only=False)[rows], 2, 4)
            lengths = pc.binary_length(table["features"]).to_numpy()[rows]
            wrong = (frames < 1) | (sizes < 1) | (sizes != sizes[:1]) | (frames * sizes * width != lengths)
            wrong |= ~pc.is_in(table["dtype"], pa.array(["f2", "f4"])).to_numpy(zero_copy_only=False)[rows]
            if wrong.any():
                i = int(wrong.argmax())
                raise ValueError(f"{ids[i]}: {frames[i]} x {sizes[i]} numbers, {lengths[i]} bytes, unlike {ids[0]}")
        if not len(rows):
            raise UserError(f"{self.folder / PARTS}: no clip with features; run `python -m vcutils extract CORPUS`")
        texts = self.table.table["row"]
        kinds = (json.loads(texts[int(row)].as_py()) for row in rows)
        self.about |= {"dim": int(sizes[0]), "extracted": one_kind(kinds, self.folder)}
        self._set_index(ids, rows)

    def _set_index(self, ids: Any, rows: np.ndarray, **more: Any) -> None:
        """Index rows in this order, with a table of hashes by which an id is found."""
        hashes = np.fromiter(map(_hash, ids.to_pylist()), np.uint64, len(ids))
        order = hashes.argsort()
        self.index = _needs("pyarrow").table({"id": ids, "row": rows, "hash": hashes[order], "hashed": order, **more})

    def join(
        self, captions: Mapping[str, Sequence[str]], splits: Mapping[str, Sequence[str]], state: Mapping[str, Any]
    ) -> None:
        """Add a corpus' captions to the index, and put it into the order of the splits; clips of none come last."""
        pa, self.about["splits"], self.about["corpus"] = _needs("pyarrow"), {}, state
        listed: list[str] = []
        for name, ids in splits.items():
            start = len(listed)
            listed += [i for i in ids if i in self.ids and i in captions]
            self.about["splits"][name] = [start, len(listed)]
        known = set(listed)
        listed += [i for i in self.ids if i not in known]
        rows = self._rows[[self.position(i) for i in listed]]
        texts = pa.array([captions.get(i, ()) for i in listed], pa.large_list(pa.large_string()))
        self._set_index(pa.array(listed, pa.large_string()), rows, captions=texts)

    @property
    def captions(self) -> Mapping[str, list[str]]:
        """Captions by id, read as they are asked for; only of an index with a corpus."""
        return self.each(lambda video_id: self.column("captions")[self.position(video_id)].as_py())

    @property
    def splits(self) -> dict[str, Ids]:
        """Ids of each split; only of an index with a corpus."""
        return {name: Ids(self, start, stop) for name, (start, stop) in self.about["splits"].items()}


def _mapped(path: Path, advice: str) -> Any:
    """A whole Arrow stream, mapped into memory. Raises UserError for one that is cut: reading it would end the process.

    One that is cut while it is in use still does: nothing here writes into a file that stands, all replace it.
    """
    with reading(path, "not a whole Arrow stream", advice):
        with open(path, "rb") as file:
            file.seek(-len(_END), 2)
            if file.read() != _END:
                raise ValueError("its end is missing")
        return _needs("datasets.table").MemoryMappedTable.from_file(str(path))


def _buffers(texts: Any) -> tuple[np.ndarray, memoryview]:
    """Where each text of a column begins and ends, and the bytes of all."""
    _, offsets, data = texts.buffers()
    wide = "large" in str(texts.type)
    starts = np.frombuffer(offsets, np.int64 if wide else np.int32)[texts.offset :]
    return starts, memoryview(data or b"").cast("B")


def _hash(video_id: str) -> int:
    return int.from_bytes(blake2b(video_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _needs(module: str) -> Any:
    """A module of the extra `scale`. Raises UserError without it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"features in {PARTS}/ need more packages ({error}): pip install 'vcutils[scale]'") from error
