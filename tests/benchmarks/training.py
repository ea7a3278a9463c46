"""Training words per second: the package's own loop against the plain one, both with reading and optimizing."""

import tempfile
from pathlib import Path

import numpy as np
import plain
import torch
from measure import Row, in_turns

from vcutils.config import Config, ModelConfig, TrainConfig
from vcutils.dataset import CaptionData
from vcutils.model import CaptionModel
from vcutils.runtime.store import FeatureStore
from vcutils.scores.coco import References
from vcutils.train import Trainer
from vcutils.vocab import SPECIALS, Vocabulary

CLIPS, BATCH, WORDS = 64, 16, 4500
SIZES = ModelConfig(embed_dim=512, encoder_dim=512, decoder_dim=512, attention_dim=512, dropout=0.5)


def toy_data(folder: Path) -> CaptionData:
    """Clips of 40 frames with 2,048 numbers each and 20 random captions, of 7 ± 3 words each as in MSVD."""
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(WORDS - len(SPECIALS))]
    captions = {}
    for clip in range(CLIPS):
        np.save(folder / f"c{clip:02}.npy", generator.random((40, 2048), dtype=np.float32).astype(np.float16))
        lengths = generator.normal(7, 3, 20).clip(2, 18).astype(int)
        captions[f"c{clip:02}"] = [" ".join(generator.choice(words, length)) for length in lengths]
    ids = sorted(captions)
    splits = {"train": ids, "val": ids[:1], "test": ids[:1]}
    return CaptionData(folder, FeatureStore(folder), captions, splits, Vocabulary((*SPECIALS, *words), (0,) * WORDS))


def measure() -> list[Row]:
    """hidden 512, 2,048-d features, 40 frames, 4,500 words; batches of 16 clips on both sides."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "features").mkdir()
        data = toy_data(folder / "features")

        def ours(captions_per_clip: int) -> float:
            settings = TrainConfig(
                epochs=1, batch_size=BATCH, captions_per_clip=captions_per_clip, lr=1e-4, frame_dropout=0.0
            )
            trainer = Trainer(folder / "run", Config(model=SIZES, train=settings), data, References, progress=False)
            return trainer.fit()[0]["words_per_second"]

        def naive() -> float:
            torch.manual_seed(0)
            model = CaptionModel(SIZES, WORDS, 2048)
            return plain.train_epoch(model, torch.optim.Adam(model.parameters(), lr=1e-4), data, BATCH)

        rows = []
        for count, goal in ((1, "≥ 1.4x"), (8, "≥ 5x"), (20, "≥ 6x")):
            sides = in_turns(lambda k=count: ours(k), naive, repeats=3)
            rows.append(Row(f"{count} captions per clip", *sides, "words/s", goal))
        return rows
