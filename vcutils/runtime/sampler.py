"""Random orders of clips: of training, and of the control that sees another clip's features."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class ClipSampler:
    """Lists of positions, a batch each; shuffled in an order that depends on (seed, epoch)."""

    drop_last = False  # accelerate asks for it when it shares batches out to processes

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.dataset.seed, self.dataset.epoch))
        order = generator.permutation(len(self.dataset)).tolist()
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def derange(ids: Sequence[str], seed: int) -> list[str]:
    """The same ids in an order in which (with two or more) none keeps its place."""
    order = np.random.default_rng(seed).permutation(len(ids))
    moved = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [ids[moved[position]] for position in range(len(ids))]
