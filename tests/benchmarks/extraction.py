"""Extraction against the plain loop, and against the floor: what network and decoder need by themselves.

Decoding against seeking is measured on the clips of VCUTILS_CORPUS too, where it names a corpus: how far apart they are
depends on the clips.
"""

import contextlib
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import plain
import torch
from measure import Row, in_turns, seconds

from vcutils.config import Config, ExtractConfig
from vcutils.corpora import open_corpus, sample
from vcutils.corpus import Corpus
from vcutils.features import extract_corpus
from vcutils.runtime import backbones
from vcutils.runtime.backbones import Backbone, load_backbone
from vcutils.runtime.decoding import decode_clips
from vcutils.video import sample_frames

FRAMES = 16


def measure() -> list[Row]:
    """Clips of the embedded sample, and first ones of VCUTILS_CORPUS; every side sees the same ones."""
    cores, own = os.cpu_count() or 1, Config.from_env().corpus
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_corpus(sample.build(Path(folder) / "sample", clips=40, progress=False))
        lite0 = lite0_backbone()
        ours, naive, floor = network_sides(lite0_backbone, corpus, cores)
        resnet_ours, resnet_naive, _ = network_sides(random_resnet152, few(corpus, 2), cores)
        many, one = in_turns(lambda: decoded(corpus, lite0, cores), lambda: decoded(corpus, lite0, 1), repeats=3)
        seeking = {}
        for clips in [corpus] + ([open_corpus(own)] if own else []):
            clips = few(clips, 20)
            for t in (FRAMES, 40):
                sides = (lambda: decoded(clips, lite0, 1, t), lambda: sought(clips, lite0, t))  # noqa: B023
                seeking[f"{t} frames a clip, {clips.root.name}"] = in_turns(*sides, repeats=3)
    unit = "frames/s"
    return [
        Row("efficientnet_lite0", ours, naive, unit, "≥ 1.5x"),
        Row("efficientnet_lite0 against the floor", ours, floor, unit, "≥ 0.90x", "network + decoding over the cores"),
        Row("resnet152", resnet_ours, resnet_naive, unit, "≥ 1.15x", "random weights: only the speed is measured"),
        Row(f"decode and resize, {cores} workers against one", many, one, unit, f"≥ {0.85 * cores:.1f}x"),
        *(
            Row(f"decode and resize {which}, one worker against seeking", *sides, unit, "≥ 2x")
            for which, sides in seeking.items()
        ),
    ]


def network_sides(load: Callable[[], Backbone], corpus: Corpus, cores: int, repeats: int = 3) -> list[float]:
    """Medians of frames/s, measured in turn: ours, the plain loop, the floor."""
    backbone = load()
    with mock.patch.object(backbones, "_fold_norms", lambda model, _: model):  # as the network is published
        plain_backbone = load()
    plain_backbone.model.to(memory_format=torch.contiguous_format)
    config = ExtractConfig(backbone.name, num_frames=FRAMES)
    pictures = np.stack([i for p in corpus.clips.values() for i in sample_frames(p, FRAMES, backbone.resize).images])

    def ours() -> float:
        with tempfile.TemporaryDirectory() as out, mock.patch("vcutils.features.load_backbone", lambda _: backbone):
            return len(pictures) / seconds(lambda: extract_corpus(corpus, Path(out), config, progress=False))

    def naive() -> float:
        return rate(corpus, lambda path: plain.extract_clip(plain_backbone, path, FRAMES))

    def floor() -> float:
        network = seconds(lambda: [backbone(pictures[i : i + 32]) for i in range(0, len(pictures), 32)])
        decoding = len(pictures) / rate(corpus, lambda path: sample_frames(path, FRAMES, backbone.resize, threads=1))
        return len(pictures) / (network + decoding / cores)

    sides = (ours, naive, floor)
    for side in sides:
        side()
    runs = [[side() for side in sides] for _ in range(repeats)]
    return [statistics.median(values) for values in zip(*runs, strict=True)]


def rate(corpus: Corpus, work: Callable[[Path], object]) -> float:
    """Frames per second of `work`, clip after clip."""
    paths = corpus.clips.values()
    return len(paths) * FRAMES / seconds(lambda: [work(path) for path in paths])


def sought(corpus: Corpus, backbone: Backbone, num_frames: int) -> float:
    """Frames per second of seeking and resizing, on one core."""
    paths = corpus.clips.values()
    work = seconds(lambda: [backbone.resize(f) for p in paths for f in plain.frames(p, num_frames, threads=1)])
    return len(paths) * num_frames / work


def decoded(corpus: Corpus, backbone: Backbone, workers: int, num_frames: int = FRAMES) -> float:
    """Frames per second that worker processes decode and resize, once they run."""
    clips = {f"{n}-{i}": path for n in range(4) for i, path in corpus.clips.items()}
    with contextlib.closing(decode_clips(clips.items(), num_frames, backbone.resize, workers)) as stream:
        for _ in range(2 * workers):
            next(stream)
        rest = len(clips) - 2 * workers
        return rest * num_frames / seconds(lambda: list(stream))


def few(corpus: Corpus, count: int) -> Corpus:
    """The corpus' first clips."""
    return dataclasses.replace(corpus, clips=dict(list(corpus.clips.items())[:count]))


def lite0_backbone() -> Backbone:
    """The default network."""
    return load_backbone("efficientnet_lite0", torch.device("cpu"))


def random_resnet152() -> Backbone:
    """ResNet-152 without a download."""
    import torchvision

    real = torchvision.models.get_model
    with mock.patch("torchvision.models.get_model", lambda name, weights: real(name, weights=None)):
        return load_backbone("resnet152", torch.device("cpu"))
