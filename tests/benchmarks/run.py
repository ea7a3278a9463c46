"""`make bench`: one table of ratios, each side measured in turn in this run, and results.json beside this file.

Both sides are warmed up, then run in turns; the ratio is that of the medians.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import plain

from vcutils import sample
from vcutils.config import DecodeConfig, ExtractConfig, ModelConfig
from vcutils.corpus import open_corpus
from vcutils.dataset import collate, pad_frames
from vcutils.decode import generate
from vcutils.extract import extract_corpus, load_backbone
from vcutils.model import CaptionModel, caption_loss
from vcutils.vocab import SPECIALS, Vocabulary

REPEATS = 5


def in_turns(sides: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, float]:
    """Median of the rate (units per second) that each side returns, run in turns after one warm-up each."""
    for run in sides.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            rates[name].append(run())
    return {name: statistics.median(values) for name, values in rates.items()}


def rate(units: float, work: Callable[[], object]) -> float:
    """Units per second of one call."""
    begun = perf_counter()
    work()
    return units / (perf_counter() - begun)


def extraction(folder: Path) -> dict[str, float]:
    """Frames per second on 12 sample clips, efficientnet_lite0, 16 frames each."""
    corpus = open_corpus(sample.build(folder / "clips", clips=12, progress=False))
    config = ExtractConfig()
    backbone = load_backbone(config.backbone)
    frames = len(corpus.clips) * config.num_frames

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return rate(frames, lambda: extract_corpus(corpus, Path(out), config, progress=False))

    def naive() -> float:
        clips = corpus.clips.values()
        return rate(frames, lambda: [plain.extract_clip(backbone, p, config.num_frames) for p in clips])

    return in_turns({"ours": ours, "plain": naive}, repeats=3)


def training(captions_per_clip: int) -> dict[str, float]:
    """Words per second: hidden 512, 2048-d features, 40 frames, 4,500 words, 16 clips."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    config = ModelConfig(embed_dim=512, encoder_dim=256, decoder_dim=512, attention_dim=512, dropout=0.0)
    model = CaptionModel(config, 4500, 2048)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def batch(count: int):
        lengths = np.clip(generator.normal(8, 2.5, (16, count)), 3, 18).astype(int)
        words = [[[1, *generator.integers(4, 4500, n).tolist(), 2] for n in row] for row in lengths]
        frames = generator.random((16, 40, 2048), dtype=np.float32)
        return collate([(str(i), frames[i], words[i]) for i in range(16)])

    many, one = batch(captions_per_clip), batch(1)

    def step(loss: Callable, data) -> float:
        def work() -> None:
            optimizer.zero_grad()
            loss(model, data).backward()
            optimizer.step()

        return rate(int((data.targets != 0).sum()), work)

    return in_turns({"ours": lambda: step(caption_loss, many), "plain": lambda: step(plain.training_loss, one)})


def decoding(beam: int) -> dict[str, float]:
    """Captions per second, 64 clips at a time against one."""
    torch.manual_seed(0)
    words = (*SPECIALS, *(f"w{i}" for i in range(4496)))
    vocabulary = Vocabulary(words, (0,) * len(words))
    model = CaptionModel(ModelConfig(embed_dim=512, decoder_dim=512, attention_dim=512), len(words), 1280).eval()
    features = [np.random.default_rng(i).random((16, 1280), dtype=np.float32) for i in range(64)]
    config = DecodeConfig(beam_size=beam, max_length=12)
    together, mask = pad_frames(features)

    def ours() -> float:
        return rate(64, lambda: generate(model, vocabulary, together, mask, config))

    def naive() -> float:
        if beam == 1:
            return rate(16, lambda: [plain.greedy(model, f, 12) for f in together[:16]])
        return rate(16, lambda: [generate(model, vocabulary, f[None], mask[:1], config) for f in together[:16]])

    return in_turns({"ours": ours, "plain": naive})


def main() -> None:
    """Measure everything, print the table, write results.json."""
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "extraction, frames/s": extraction(Path(folder)),
            "training, words/s, 8 captions per clip": training(8),
            "training, words/s, 20 captions per clip": training(20),
            "training, words/s, 1 caption per clip": training(1),
            "decoding, captions/s, greedy": decoding(1),
            "decoding, captions/s, beam 5": decoding(5),
        }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{machine}\n{'':<42}{'ours':>10}{'plain':>10}{'ratio':>8}")
    for name, sides in results.items():
        print(f"{name:<42}{sides['ours']:>10.1f}{sides['plain']:>10.1f}{sides['ours'] / sides['plain']:>7.1f}x")
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
