"""MSVD at full size without its clips: every stage after extraction with the msvd profile, its seconds and its memory.

    OMP_NUM_THREADS=2 python tests/benchmarks/full_size.py                 in a temporary folder
    python tests/benchmarks/full_size.py --epochs 3 --folder big           keeps big/msvd, to run the notebooks on

The captions are the true ones of all 1,970 clips, and so is the split; the features are made: 40 frames of 2,048
numbers per clip, which carry some of what the captions say. Not part of `run.py`: it takes a quarter of an hour, and
there is no plain side to compare with, only a limit for memory. Results go to full_size.json beside this file. Not on
Windows.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import psutil
from run import machine

from vcutils.config import PROJECT_ROOT
from vcutils.corpora.readers import read_captions

SHARED = Path(os.environ.get("VCUTILS_SHARED") or PROJECT_ROOT.parent / "shared") / "corpora"
CAPTIONS = SHARED / "msvd-mini" / "AllVideoDescriptions.txt"
RESULTS = Path(__file__).parent / "full_size.json"
FRAMES, DIM = 40, 2048
LIMIT_GIB = 24


def word_direction(word: str, dim: int) -> np.ndarray:
    """(D,) of unit length, the same for a word in every run."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    direction = np.random.default_rng(seed).standard_normal(dim, dtype=np.float32)
    return direction / np.linalg.norm(direction)


def make_features(captions: dict[str, list[str]], folder: Path, frames: int = FRAMES, dim: int = DIM) -> None:
    """A file of (T, D) float16 per clip: the directions of its captions' words, rare ones more, and noise per frame."""
    counts = {i: Counter(word for text in texts for word in set(text.split())) for i, texts in captions.items()}
    clips_with = Counter(word for words in counts.values() for word in words)
    directions = {word: word_direction(word, dim) for word, clips in clips_with.items() if clips > 1}
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for video_id, words in counts.items():
        known = [word for word in words if word in directions]
        weights = np.array([words[w] * np.log(len(captions) / clips_with[w]) for w in known], np.float32)
        signal = weights @ np.stack([directions[w] for w in known])
        signal *= np.sqrt(dim) / np.linalg.norm(signal)  # as strong as the noise
        noise = generator.standard_normal((frames, dim), dtype=np.float32)
        np.save(folder / f"{video_id}.npy", np.maximum(0, signal + noise).astype(np.float16))  # pooled: no negatives


def make_corpus(root: Path) -> None:
    """A corpus folder with MSVD's captions and made features; one that is there already stays."""
    if (root / "AllVideoDescriptions.txt").exists():
        return
    make_features(read_captions(CAPTIONS), root / "features" / "resnet152")
    (root / "AllVideoDescriptions.txt").write_bytes(CAPTIONS.read_bytes())


def resident(process: psutil.Process) -> int:
    """Bytes that a process and its children (METEOR's Java, decoders) hold now."""
    total = 0
    with contextlib.suppress(psutil.Error):  # one may just have ended
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    return total


def stage(name: str, *arguments: str | Path) -> dict:
    """Run one verb of the command line in a process of its own: a row with its time and its peak memory.

    Processor seconds tell what wall time does not while others use the machine. They leave out METEOR's Java.
    """
    print(f"{name} …", file=sys.stderr, flush=True)
    environment = os.environ | {"VCUTILS_PROFILE": "msvd"}
    command = [sys.executable, "-m", "vcutils", *map(str, arguments)]
    begun, peak, ended = perf_counter(), 0, 0
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, env=environment, cwd=PROJECT_ROOT, stdout=sys.stderr, stderr=errors)
        process = psutil.Process(child.pid)
        while not ended:
            peak = max(peak, resident(process))
            sleep(0.1)
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        took = perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").split("\n")
    peak = max(peak, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))  # bytes on macOS, else KiB
    note = "" if child.returncode == 0 else " ".join([f"exit code {child.returncode}", *lines[-2:]]).strip()
    times = {"seconds": round(took, 1), "processor seconds": round(usage.ru_utime + usage.ru_stime, 1)}
    row = {"stage": name, **times, "peak GiB": round(peak / 2**30, 2), "note": note}
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> int:
    """Measure every stage, print the table, write full_size.json; 1 when a stage failed or needed too much memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="build here, and keep it")
    parser.add_argument("--check", default="val", help="the split of explore --check; test takes seven times as long")
    given = parser.parse_args()
    if not CAPTIONS.is_file():
        print(f"no {CAPTIONS}: set VCUTILS_SHARED to a folder with corpora/msvd-mini", file=sys.stderr)
        return 2
    load = psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        corpus, data = folder / "msvd", folder / "data"
        begun = perf_counter()
        make_corpus(corpus)
        print(f"corpus: {perf_counter() - begun:.0f} s", file=sys.stderr)
        run = data / "msvd" / "runs" / "full"
        rows = [
            stage("doctor", "doctor", corpus, "--data", data),
            stage("vocab", "vocab", corpus, "--data", data),
            stage(f"train, epochs: {given.epochs}", "train", corpus, "--data", data, "--run", "full",
                  "--epochs", str(given.epochs)),
            stage("evaluate, beam 5", "evaluate", run, "--beam", "5"),
            stage("explore, one clip's page", "explore", run, "--out", folder / "page.html", "--", "mv89psg6zh4_33_46"),
            stage(f"explore --check, {given.check}", "explore", run, "--check", "--split", given.check),
        ]  # fmt: skip
    about = machine() | {"load before": round(load, 1)}
    RESULTS.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{'stage':<28}{'seconds':>9}{'processor':>11}{'peak GiB':>10}  note")
    for row in rows:
        times = f"{row['seconds']:>9.1f}{row['processor seconds']:>11.1f}"
        print(f"{row['stage']:<28}{times}{row['peak GiB']:>10.2f}  {row['note']}")
    return int(any(row["note"] or row["peak GiB"] > LIMIT_GIB for row in rows))


if __name__ == "__main__":
    sys.exit(main())
