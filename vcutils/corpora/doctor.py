"""What a person should know before hours are spent: what a corpus holds, what will fail, how long, what is missing."""

import platform
import shutil
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np
import torch

from vcutils.config import Config, UserError
from vcutils.corpora.readers import EXCLUDE, read_excluded
from vcutils.corpus import Corpus, make_splits
from vcutils.runtime.backbones import load_backbone
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import Worker, unreadable_clips
from vcutils.runtime.files import write_text
from vcutils.runtime.machine import cpu_count, pick_device
from vcutils.scores.coco import why_no_meteor
from vcutils.video import frame_indices

SAMPLE = 6  # clips that the estimate is measured on
SAMPLE_SECONDS = 15.0  # after which no further one is begun


def examine(corpus: Corpus, config: Config, fix: bool = False) -> dict[str, Any]:
    """Counts, split, unreadable clips, a measured estimate of time and disk, and what this machine has.

    Returns a JSON-ready dict; `problems` lists everything that will be passed over, a line each, and what is missing.
    `fix` adds the clips that can be neither decoded nor read as features to data/<corpus>/exclude.txt, which all
    later stages respect; nothing else is written. The estimate loads the backbone, as extraction will.
    """
    unreadable = unreadable_clips(corpus.clips, config.extract.workers, config.extract.patience)
    problems = [f"{i}: {reason}" for i, reason in sorted(unreadable.items())] + corpus.problems
    try:
        splits, origin = make_splits(corpus)
        split: dict[str, Any] = {"origin": origin, **{name: len(ids) for name, ids in splits.items()}}
    except UserError as error:
        split = {"origin": "none"}
        problems.append(str(error))
    usable = corpus.usable
    counts = [len(corpus.captions[i]) for i in usable]
    report: dict[str, Any] = {
        "corpus": str(corpus.root),
        "clips": len(corpus.clips),
        "own features": sorted(corpus.features),
        "clips with captions": len(usable),
        "clips without captions": len(set(corpus.clips) - set(corpus.captions)),
        "captions without clips": len(set(corpus.captions) - set(usable)),
        "captions": sum(counts),
        "captions per clip": {
            "min": min(counts),
            "mean": round(sum(counts) / len(counts), 1),
            "max": max(counts),
        },
        "split": split,
        "unreadable clips": sorted(unreadable),
        f"left out by {EXCLUDE}": corpus.excluded,
    }
    try:
        report["estimate"] = estimate(corpus, config, [p for i, p in corpus.clips.items() if i not in unreadable])
    except UserError as error:  # without weights there will be no extraction either
        problems.append(str(error))
        report["estimate"] = None
    free = _free(config.artifacts)
    report["free disk, MB"] = round(free / 1e6)
    if report["estimate"] and report["estimate"]["disk for features, MB"] * 1e6 > free:
        problems.append(f"{config.artifacts}: the disk has no room for the features; make some, or move it with --data")
    report["machine"] = _machine()
    report["METEOR"] = why_no_meteor() or "available"
    if fix:
        report["written"] = _exclude(corpus, unreadable, config.artifacts / EXCLUDE)
    return report | {"problems": problems}


def estimate(corpus: Corpus, config: Config, clips: list[Path]) -> dict[str, Any] | None:
    """Time and disk that the extraction of a corpus will take, from a few of its readable clips of every size.

    None when there is nothing to extract. Raises UserError when the backbone cannot be had.
    """
    if not clips:
        return None
    by_size = sorted(clips, key=lambda path: path.stat().st_size)
    chosen = [by_size[i] for i in frame_indices(len(by_size), SAMPLE)]
    backbone = load_backbone(config.extract.backbone)
    worker = Worker(config.extract.num_frames, backbone.resize, config.extract.patience)
    cores = config.extract.workers or cpu_count()
    begun, seconds, sizes = monotonic(), [], []
    with closing(worker):
        for path in (chosen[0], *chosen):  # the first one twice: what is only slow at first does not count
            started = monotonic()
            try:
                frames = worker(path)
            except VideoError:  # beyond its first frame, extraction will tell
                continue
            decoded = monotonic()
            sizes.append(backbone(np.stack(frames.images)).numel() * 2)
            seconds.append((decoded - started) / cores + monotonic() - decoded)
            if monotonic() - begun > SAMPLE_SECONDS:
                break
    if len(seconds) > 1:
        del seconds[0], sizes[0]
    if not seconds:
        return None
    return {
        "measured on": f"{len(seconds)} of {len(clips)} clips (it may be wrong by half)",
        "backbone": backbone.name,
        "frames per clip": config.extract.num_frames,
        "minutes of extraction": round(sum(seconds) / len(seconds) * len(clips) / 60, 1),
        "disk for features, MB": round(sum(sizes) / len(sizes) * len(clips) / 1e6, 1),
    }


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def _machine() -> dict[str, str]:
    device = pick_device()
    gpu = device.type
    if gpu == "cuda":
        about = torch.cuda.get_device_properties(device)
        gpu = f"{about.name}, {about.total_memory / 1e9:.0f} GB"
    return {
        "GPU": "none" if gpu == "cpu" else gpu,
        "cores": str(cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }


def _exclude(corpus: Corpus, unreadable: dict[str, str], path: Path) -> str:
    """Add the unreadable clips that bring no features to the list; what stands in it already is kept."""
    known = read_excluded(path)
    ready = {p.stem for folder in corpus.features.values() for p in folder.glob("*.npy")}
    new = {i: " ".join(reason.split()) for i, reason in sorted(unreadable.items()) if i not in ready}
    if not new:
        return f"nothing, no clip needs to be left out beyond the {len(known)} of {path}"
    before = path.read_text(encoding="utf-8-sig").rstrip("\n") + "\n" if known else ""
    write_text(path, before + "".join(f"# {reason}\n{i}\n" for i, reason in new.items()))
    return f"{path}: {len(new)} clip(s) more to leave out; delete a line to take its clip in again"
