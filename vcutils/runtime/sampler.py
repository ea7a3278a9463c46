"""Random orders of clips: of training, and of the control that sees another clip's features; their random numbers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vcutils.runtime.processes import place


class ClipOrder:
    """Batches of the positions of clips, shuffled in an order that depends on (seed, epoch) alone.

    A batch is what all processes see at a time, `batch_size` clips each; this process gets its
    share, or what `among`, (rank, processes), says. The first `done` clips of an epoch are left out.
    """

    def __init__(self, dataset: Any, batch_size: int, among: tuple[int, int] | None = None) -> None:
        self.rank, self.processes = among or place()
        self.dataset, self.size, self.done = dataset, batch_size * self.processes, 0

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.dataset.seed, self.dataset.epoch)).permutation(len(self.dataset))
        for first in range(self.done, len(order), self.size):
            share = self.share(first)
            # Where a last batch has fewer clips than there are processes, one of them is shown and does not count.
            yield order[share.start : share.stop].tolist() or order[first : first + 1].tolist()

    def share(self, first: int) -> range:
        """Where this process' clips stand in the epoch, of the batch that begins there."""
        count = min(self.size, len(self.dataset) - first)
        begin, end = (count * rank // self.processes for rank in (self.rank, self.rank + 1))
        return range(first + begin, first + end)


def chances(seed: int, epoch: int, place: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Random numbers (B, K, L) from 0 to 1 for the B clips from a place in an epoch's order on.

    They are a place's own, however many processes share the epoch, and whatever was drawn before.
    """
    clips, captions, words = shape
    each = -(-captions * words // 8) * 8  # the generator makes eight at a time
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch))).advance(place * each // 8)
    numbers = np.random.Generator(bits).random((clips, each), dtype=np.float32)
    return numbers[:, : captions * words].reshape(shape)


def derange(ids: Sequence[str], seed: int) -> list[str]:
    """The same ids in an order in which (with two or more) none keeps its place."""
    order = np.random.default_rng(seed).permutation(len(ids))
    moved = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [ids[moved[position]] for position in range(len(ids))]
