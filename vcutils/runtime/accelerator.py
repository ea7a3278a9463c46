"""Hugging Face accelerate, set up for one run after another in the same process."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator, PartialState, skip_first_batches
from accelerate.state import AcceleratorState
from accelerate.utils import find_executable_batch_size

from vcutils.runtime.machine import precision_for
from vcutils.runtime.settings import UserError


def make_accelerator(precision: str) -> Accelerator:
    """An Accelerator of this precision (see TrainConfig).

    Gradient accumulation is the trainer's own: accelerate's would be shared by all runs of a process.
    """
    chosen = precision_for(precision, PartialState().device)
    if AcceleratorState._shared_state.get("_mixed_precision", chosen) != chosen:
        AcceleratorState._reset_state()  # an earlier run of this process used another precision
    return Accelerator(mixed_precision=chosen)


def largest_batch(try_batch: Callable[[int], Any], upper: int) -> int:
    """The largest of upper, upper/2, upper/4, … for which `try_batch(size)` does not run out of GPU memory.

    Raises UserError when not even one clip fits.
    """

    def attempt(batch_size: int) -> int:
        try:
            try_batch(batch_size)
        except torch.OutOfMemoryError as error:  # accelerate goes by the words of an English message
            raise RuntimeError("CUDA out of memory.") from error
        return batch_size

    try:
        return int(find_executable_batch_size(attempt, starting_batch_size=upper)())
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise UserError(
            "not even one clip fits into the GPU's memory: lower captions_per_clip or the model's sizes"
        ) from error


def remaining_batches(loader: Any, done: int) -> Iterator[tuple[int, Any]]:
    """The batches of an epoch behind the first `done`, with their numbers."""
    if done >= len(loader):  # old versions of accelerate would give one empty batch
        return
    batches = enumerate(skip_first_batches(loader, done) if done else loader, done)
    if done:  # a loader draws a random number when it starts, which the run that was cut had drawn before
        state = torch.get_rng_state()
        first = list(islice(batches, 1))
        torch.set_rng_state(state)
        yield from first
    yield from batches
