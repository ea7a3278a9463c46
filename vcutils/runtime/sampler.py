"""The order in which training shows the clips."""

from collections.abc import Iterator
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
