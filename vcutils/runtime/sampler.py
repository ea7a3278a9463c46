"""Random orders of clips: of training, and of the control that sees another clip's features."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class ClipOrder:
    """Positions of all clips, shuffled in an order that depends on (seed, epoch)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.dataset.seed, self.dataset.epoch))
        return iter(generator.permutation(len(self.dataset)).tolist())


def derange(ids: Sequence[str], seed: int) -> list[str]:
    """The same ids in an order in which (with two or more) none keeps its place."""
    order = np.random.default_rng(seed).permutation(len(ids))
    moved = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [ids[moved[position]] for position in range(len(ids))]
