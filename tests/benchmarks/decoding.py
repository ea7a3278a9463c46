"""Captions per second: 64 clips at a time against one."""

import numpy as np
import plain
import torch
from measure import Row, in_turns, seconds

from vcutils.config import DecodeConfig, ModelConfig
from vcutils.dataset import pad_frames
from vcutils.decode import generate
from vcutils.model import CaptionModel
from vcutils.vocab import SPECIALS, Vocabulary

CLIPS, FRAMES, DIM, LENGTH = 64, 40, 2048, 12


def measure() -> list[Row]:
    """The original sizes with 40 frames; an untrained model, so that most captions are as long as is allowed."""
    torch.manual_seed(0)
    words = (*SPECIALS, *(f"w{i}" for i in range(4496)))
    vocabulary = Vocabulary(words, (0,) * len(words))
    sizes = ModelConfig(embed_dim=512, encoder_dim=512, decoder_dim=512, attention_dim=512)
    model = CaptionModel(sizes, len(words), DIM).eval()
    arrays = [np.random.default_rng(i).random((FRAMES, DIM), dtype=np.float32) for i in range(CLIPS)]
    features, mask = pad_frames(arrays)

    def row(name: str, beam: int, goal: str) -> Row:
        config = DecodeConfig(beam_size=beam, max_length=LENGTH)

        def ours() -> float:
            return CLIPS / seconds(lambda: generate(model, vocabulary, features, mask, config))

        def one_by_one() -> float:
            some = features[:8]
            return len(some) / seconds(lambda: [plain.beam_search(model, f, beam, LENGTH) for f in some])

        return Row(name, *in_turns(ours, one_by_one), "captions/s", goal)

    return [row("greedy", 1, "≥ 10x"), row("beam of 5", 5, "≥ 5x")]
