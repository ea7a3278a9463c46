"""Captions per second: 64 clips at a time against one."""

import numpy as np
import plain
import torch
from measure import Row, in_turns, seconds
from torch import Tensor

from vcutils.config import DecodeConfig, ModelConfig
from vcutils.dataset import pad_frames
from vcutils.decode import generate
from vcutils.model import CaptionModel
from vcutils.vocab import SPECIALS, Vocabulary

CLIPS, LENGTH = 64, 12


def clips(
    sizes: ModelConfig, words: int, frames: int, dim: int, count: int = CLIPS
) -> tuple[CaptionModel, Tensor, Tensor]:
    """An untrained model, features (B, T, D) of so many clips, their mask (B, T)."""
    random = np.random.default_rng(0)
    arrays = [random.random((frames, dim), dtype=np.float32) for _ in range(count)]
    return CaptionModel(sizes, words, dim).eval(), *pad_frames(arrays)


def measure() -> list[Row]:
    """The original sizes; untrained models, so that most captions are as long as is allowed."""
    torch.manual_seed(0)
    words = (*SPECIALS, *(f"w{i}" for i in range(4496)))
    vocabulary = Vocabulary(words, (0,) * len(words))
    sizes = ModelConfig(embed_dim=512, encoder_dim=512, decoder_dim=512, attention_dim=512)

    def row(beam: int, frames: int, dim: int, goal: str) -> Row:
        model, features, mask = clips(sizes, len(words), frames, dim)
        config = DecodeConfig(beam_size=beam, max_length=LENGTH)

        def ours() -> float:
            return CLIPS / seconds(lambda: generate(model, vocabulary, features, mask, config))

        def one_by_one() -> float:
            some = features[:8]
            return len(some) / seconds(lambda: [plain.beam_search(model, f, beam, LENGTH) for f in some])

        name = f"{'greedy' if beam == 1 else f'beam of {beam}'}, {frames} frames of {dim:,} numbers"
        return Row(name, *in_turns(ours, one_by_one), "captions/s", goal)

    return [row(beam, *size, goal) for size in ((16, 1280), (40, 2048)) for beam, goal in ((1, "≥ 10x"), (5, "≥ 5x"))]
