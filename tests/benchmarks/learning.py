"""Time to a validation CIDEr: the package's training against the plain loop with shifted targets.

On the corpus of VCUTILS_CORPUS (and VCUTILS_DATA) whose notebooks 01 and 02 have run; without one there is no row:

    VCUTILS_CORPUS=…/vtt-mini VCUTILS_DATA=… python tests/benchmarks/run.py learning
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import plain
import torch
from measure import Row

from vcutils.config import ORIGINAL_TRAINING, Config
from vcutils.corpora import open_corpus
from vcutils.dataset import CaptionData, load_data
from vcutils.model import CaptionModel
from vcutils.scores import coco as metrics
from vcutils.scores.coco import References
from vcutils.train import Trainer

LEVEL = 0.15  # CIDEr of greedy captions on validation; a model that says one sentence of every clip has less
PATIENCE = 6  # times ours, after which the plain loop is stopped
BATCH, EVERY = 16, 5  # the plain loop's clips per batch, and its epochs between looks at validation


class Reached(Exception):
    """The level, that is."""


class UntilLevel(Trainer):
    """Training that ends at the level."""

    def validate(self) -> dict[str, float]:
        """As Trainer's."""
        scores = super().validate()
        if scores["val_CIDEr"] >= LEVEL:
            raise Reached
        return scores


def ours(config: Config, data: CaptionData) -> float:
    """Seconds until the level, reading and validating included."""
    with tempfile.TemporaryDirectory() as folder:
        begun = perf_counter()
        try:
            UntilLevel(Path(folder), config, data, References, progress=False).fit()
        except Reached:
            return perf_counter() - begun
    raise SystemExit(f"learning: CIDEr {LEVEL} was never reached on {data.root}")


def plain_loop(config: Config, data: CaptionData, limit: float) -> tuple[float, float]:
    """(seconds, CIDEr) at the level or at the limit, with the same sizes."""
    settings = data.suited(config)
    model = CaptionModel(settings.model, len(data.vocabulary), data.store.dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.train.lr, weight_decay=settings.train.weight_decay)
    references = metrics.References({i: data.captions[i] for i in data.splits["val"]})
    begun, cider = perf_counter(), 0.0
    while perf_counter() - begun < limit and cider < LEVEL:
        for _ in range(EVERY):
            plain.train_epoch(model, optimizer, data, BATCH)
        model.eval()
        captions = {}
        for i in data.splits["val"]:
            words = plain.beam_search(model, torch.from_numpy(data.store[i]).float(), 1, settings.train.max_length)
            captions[i] = " ".join(data.vocabulary.decode(words))
        cider = references.score(captions, ("CIDEr",))["CIDEr"] or 0.0
    return perf_counter() - begun, cider


def measure() -> list[Row]:
    """Once each: minutes of training are their own average."""
    config = Config.from_env()
    if config.corpus is None or not (config.artifacts / "vocab.json").is_file():
        print("learning: name a corpus that is ready to train on, with VCUTILS_CORPUS", file=sys.stderr)
        return []
    data = load_data(open_corpus(config.corpus_dir), config.artifacts, config.extract)
    torch.manual_seed(0)
    seconds = ours(config, data)
    rows = []
    rates = {f"plain learning rate {ORIGINAL_TRAINING.lr:g}": ORIGINAL_TRAINING.lr, "plain learning rate as ours": None}
    for name, lr in rates.items():
        settings = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=lr))
        base, cider = plain_loop(settings, data, PATIENCE * seconds)
        note = "" if cider >= LEVEL else f"stopped at CIDEr {cider:.2f}: the ratio is at least this"
        rows.append(Row(f"CIDEr {LEVEL} on {data.root.name}, {name}", seconds, base, "s", "≥ 5x", note))
    return rows
