"""The store of 10 million clips: opening it, random rows from it, and training from it against training from .npy.

    python tests/benchmarks/store.py [FOLDER] [CLIPS]     a store that stays (default: a temporary one)

Every id, caption and manifest row is real and lies on the disk (about 6 GB at 10 million). Features are real in the
first part, the working set that a cache can hold; in the others they are holes in the files, which read as zeros.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
from measure import Row, in_turns

FRAMES, DIM, CLIPS, REAL, PART = 16, 1280, 10_000_000, 25_000, 25_000
WORDS = [f"w{i}" for i in range(500)]


def name_of(number: int) -> str:
    """An id as a corpus may have it."""
    return f"clip-{number:08}"


class Captions(Mapping):
    """One caption of eight words for each of so many clips, made when it is asked for."""

    def __init__(self, clips: int) -> None:
        self.clips = clips

    def __getitem__(self, video_id: str) -> list[str]:
        number = int(video_id[5:])
        return [" ".join(WORDS[(number * k + k) % len(WORDS)] for k in range(1, 9))]

    def __len__(self) -> int:
        return self.clips

    def __iter__(self):
        return map(name_of, range(self.clips))


class Holed:
    """A file for Arrow to write to, in which features of zeros become a hole."""

    def __init__(self, path: Path, hole: int) -> None:
        self.file, self.hole, self.closed = open(path, "wb"), hole, False

    def write(self, data) -> int:
        """Write bytes, or leave as many out."""
        if len(data) == self.hole:
            self.file.seek(self.hole, 1)
            return self.hole
        return self.file.write(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """End the file."""
        self.file.close()
        self.closed = True


def write(folder: Path, clips: int) -> dict[str, float]:
    """A store of so many clips, with captions and splits in its index; what writing took."""
    import pyarrow as pa

    from vcutils.runtime.arrow import pack, schema

    (folder / "parts").mkdir(parents=True)
    begun, size = perf_counter(), 2 * FRAMES * DIM
    for start in range(0, clips, PART):
        count = min(PART, clips - start)
        names = [name_of(i) for i in range(start, start + count)]
        numbers = np.zeros(count * FRAMES * DIM, "<f2")
        if start < REAL:
            numbers[:] = np.random.default_rng(start).random(numbers.shape, dtype=np.float32)
        buffers = [None, pa.py_buffer(np.arange(count + 1, dtype=np.int64) * size), pa.py_buffer(numbers)]
        kind = {"backbone": "made", "weights": "none", "num_frames": FRAMES}
        columns = {
            "id": names,
            "key": [f"{i}@1-2" for i in names],
            "features": pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers),
            "dtype": ["f2"] * count,
            "T": np.full(count, FRAMES, np.int32),
            "D": np.full(count, DIM, np.int32),
            "row": [json.dumps({"id": i, "source": f"videos/{i}.mp4", **kind}) for i in names],
        }
        table = pa.table(columns, schema())
        hole = numbers.nbytes if start >= REAL else -1
        sink = Holed(folder / "parts" / f"{start // PART:05}.arrow", hole)
        with pa.PythonFile(sink, "w") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    parts = perf_counter() - begun
    ids = [name_of(i) for i in range(clips)]
    few = max(1, clips // 1000)
    splits = {"train": ids[: -2 * few], "val": ids[-2 * few : -few], "test": ids[-few:]}
    pack(folder, progress=False, corpus=(Captions(clips), splits, {}))
    return {"parts": parts, "index": perf_counter() - begun - parts}


def memory() -> dict[str, float]:
    """Of this process, MB: its own, and with the pages of mapped files that the system can take back."""
    info = psutil.Process().memory_info()
    return {"own": (info.rss - info.shared) / 2**20, "mapped too": info.rss / 2**20}


def look(folder: Path) -> dict:
    """Open the store as training does, and read from it; run in a process of its own, whose memory is measured."""
    from vcutils.dataset import CaptionData, CaptionDataset, collate, make_loader
    from vcutils.runtime.store import FeatureStore
    from vcutils.vocab import SPECIALS, Vocabulary

    before, begun = memory(), perf_counter()
    store = FeatureStore(folder)
    opened = perf_counter() - begun
    parts = store._parts
    data = CaptionData(folder, store, parts.captions, parts.splits, Vocabulary((*SPECIALS, *WORDS), (0,) * 504))
    dataset = CaptionDataset(data, "train", 1, 24)
    result = {"clips": len(store.ids), "opened": opened, "before": before, "after opening": memory()}
    real = min(REAL, len(dataset))
    generator = np.random.default_rng(0)
    for name, read in (("rows", lambda i: store[dataset.ids[i]]), ("items", dataset.__getitem__)):
        for _ in range(3):  # the first time warms the cache
            begun, batches = perf_counter(), 100
            for _ in range(batches):
                batch = [read(int(i)) for i in generator.choice(real, 64, replace=False)]
            result[name] = max(result.get(name, 0), 64 * batches / (perf_counter() - begun))
    result["padded batches"] = 0
    for _ in range(3):
        begun = perf_counter()
        for _ in range(50):
            batch = collate([dataset[int(i)] for i in generator.choice(real, 64, replace=False)])
        result["padded batches"] = max(result["padded batches"], 64 * 50 / (perf_counter() - begun))
    assert batch.features.shape == (64, FRAMES, DIM)
    loader = iter(make_loader(dataset, 64))
    begun = perf_counter()
    next(loader)
    result |= {"first batch of an epoch": perf_counter() - begun, "after an epoch's start": memory()}
    for _ in range(100):
        next(loader)
    return result | {"after 100 batches": memory()}


def measure() -> list[Row]:
    """10 million clips, and training against .npy on few of them."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "store", CLIPS)
        command = [sys.executable, __file__, "--look", str(Path(name) / "store")]
        subprocess.run(command, check=True, capture_output=True)  # what comes first reads the disk
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        after, batches = result["after opening"], result["after 100 batches"]
        sides = in_turns(*trainings(Path(name) / "few"), repeats=3)
    return [
        Row(f"open {CLIPS:,} clips", result["opened"], None, "s", "≤ 2 s"),
        Row("memory of the process that opened them", after["own"], None, "MB", "≤ 1,000"),
        Row("the same after 100 shuffled batches", batches["own"], None, "MB", "≤ 1,000"),
        Row("random rows in batches of 64, warm", result["rows"], None, "rows/s", "≥ 20,000"),
        Row("the same as padded training batches", result["padded batches"], None, "rows/s", ""),
        Row("training; baseline: .npy", *sides, "words/s", "≥ 1x"),
    ]


def trainings(folder: Path):
    """(from parts, from .npy): each trains an epoch on the same clips and tells its words/s."""
    from training import toy_data

    from vcutils.config import Config, ModelConfig, TrainConfig
    from vcutils.runtime.arrow import pack
    from vcutils.runtime.store import FeatureStore
    from vcutils.scores.coco import References
    from vcutils.train import Trainer

    (folder / "features").mkdir(parents=True)
    data = toy_data(folder / "features")
    files = FeatureStore(folder / "features")
    pack(folder / "features", progress=False)
    parts = FeatureStore(folder / "features")

    def words_per_second(store: FeatureStore) -> float:
        from dataclasses import replace

        sizes = ModelConfig(128, 128, 128, 128)
        settings = TrainConfig(epochs=1, batch_size=16, captions_per_clip=5, scst_epochs=0)
        config = Config(model=sizes, train=settings)
        trainer = Trainer(folder / "run", config, replace(data, store=store), References, progress=False)
        return trainer.fit()[0]["words_per_second"]

    return lambda: words_per_second(parts), lambda: words_per_second(files)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--look"]:
        print(json.dumps(look(Path(sys.argv[2]))))
    elif sys.argv[1:]:
        print(json.dumps(write(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else CLIPS)))
    else:
        print(*measure(), sep="\n")
