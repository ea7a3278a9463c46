"""Corpora of 1,000, 10,000 and 100,000 clips: opening them, and one shuffled epoch of batches, from a pack."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
from measure import Row

FRAMES, DIM = 8, 1280  # half of what the sample's backbone gives per clip: 100,000 clips are 2 GB


def write(folder: Path, clips: int) -> None:
    """A pack of so many clips, as `vcutils.runtime.store.pack` writes it, without 100,000 files to make it of."""
    generator, size = np.random.default_rng(0), 2 * FRAMES * DIM
    header: dict = {"__metadata__": {"manifest": hashlib.sha256().hexdigest(), "extracted": "null"}}
    for i in range(clips):
        place = [i * size, (i + 1) * size]
        header[f"clip{i:06}"] = {"dtype": "F16", "shape": [FRAMES, DIM], "data_offsets": place}
    text = json.dumps(header).encode()
    with open(folder / "packed.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(clips):
            file.write(generator.random((FRAMES, DIM), dtype=np.float32).astype(np.float16).data)


def epoch(folder: Path) -> dict[str, float]:
    """Open the corpus and go through its batches once; run in a process of its own, whose memory is measured."""
    from vcutils.dataset import CaptionData, CaptionDataset, make_loader
    from vcutils.runtime.store import FeatureStore
    from vcutils.vocab import SPECIALS, Vocabulary

    begun = perf_counter()
    store = FeatureStore(folder)
    ids = sorted(store.ids)
    captions = {i: ["a cat runs", "a dog sleeps"] for i in ids}  # cut into words once, as in any later epoch
    splits = {"all": ids, "few": ids[:256]}
    data = CaptionData(folder, store, captions, splits, Vocabulary((*SPECIALS, "cat"), (0,) * 5))
    dataset = CaptionDataset(data, "all", 1, 24)
    opened = perf_counter() - begun
    memory = psutil.Process().memory_info  # as it is now: the peak would be that of the imports
    list(make_loader(CaptionDataset(data, "few", 1, 24), 64))  # warm-up
    before = most = memory().rss
    begun = perf_counter()
    for _ in make_loader(dataset, 64):
        most = max(most, memory().rss)
    return {"opened": opened, "epoch": perf_counter() - begun, "grown": (most - before) / 2**20}


def disk(folder: Path, clips: int) -> float:
    """Seconds for reading as many clips in random order from the bare file."""
    path, size = folder / "packed.safetensors", 2 * FRAMES * DIM
    order = np.random.default_rng(1).permutation(clips)
    begun = perf_counter()
    with open(path, "rb", buffering=0) as file:
        for i in order:
            file.seek(int(i) * size)
            file.read(size)
    return perf_counter() - begun


def forget(folder: Path) -> None:
    """Put the pack out of the system's cache, so that both sides read the disk."""
    with open(folder / "packed.safetensors", "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure() -> list[Row]:
    """One repeat per size: the curve over sizes says more than repeats of one."""
    rows = []
    for clips in (1000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, clips)
            forget(folder)
            bare = disk(folder, clips)
            forget(folder)
            command = [sys.executable, __file__, name]
            result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            rows.append(Row(f"open {clips:,} clips", result["opened"], None, "s", "< 2 s"))
            rows.append(Row(f"memory that an epoch of {clips:,} adds", result["grown"], None, "MB", "flat"))
            rate = f"epoch of {clips:,}, shuffled; baseline: the disk"
            rows.append(Row(rate, clips / result["epoch"], clips / bare, "clips/s", "≥ 0.5x"))
    return rows


if __name__ == "__main__":
    print(json.dumps(epoch(Path(sys.argv[1]))))
