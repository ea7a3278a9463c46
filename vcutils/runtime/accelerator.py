"""Hugging Face accelerate, set up for one run after another in the same process."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import find_executable_batch_size

from vcutils.runtime.fast import TrainingModel
from vcutils.runtime.processes import join, over_all
from vcutils.runtime.settings import UserError


def make_accelerator(precision: str) -> Accelerator:
    """An Accelerator of this precision; "auto" is bf16 (fp16 on older GPUs) on CUDA and none elsewhere.

    Gradient accumulation is the trainer's own: accelerate's would be shared by all runs of a process.
    """
    on_gpu = join().device.type == "cuda"
    if precision == "auto":
        precision = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # an earlier run of this process used another one
    return Accelerator(mixed_precision=precision)


def fitting_batch(accelerator: Accelerator, new_model: Callable, data: Any, settings: Any) -> int:
    """Clips per step: settings.batch_size, or with find_batch_size on CUDA as many of the longest clips as fit."""
    if not settings.find_batch_size or accelerator.device.type != "cuda":
        return int(settings.batch_size)
    device, unknown = accelerator.device, data.vocabulary.index["<unk>"]
    longest = max((data.store[i] for i in data.splits["train"][:256]), key=len)
    features = torch.from_numpy(longest).float().to(device)

    def try_batch(size: int) -> None:
        network = TrainingModel(new_model()).to(device)
        words = torch.full((size, settings.captions_per_clip, settings.max_length + 1), unknown, device=device)
        mask = torch.ones(size, len(features), dtype=torch.bool, device=device)
        with accelerator.autocast():
            logits, *_ = network(features.expand(size, -1, -1), mask, words)
            loss = logits.float().log_softmax(dim=-1).mean()
        loss.backward()

    return largest_batch(try_batch, settings.batch_size)


def largest_batch(try_batch: Callable[[int], Any], upper: int) -> int:
    """The first size from `upper` down whose `try_batch(size)` finds enough GPU memory, in every process.

    Raises UserError for none.
    """

    def attempt(batch_size: int) -> int:
        try:
            try_batch(batch_size)
        except torch.OutOfMemoryError as error:  # accelerate goes by the words of an English message
            raise RuntimeError("CUDA out of memory.") from error
        return batch_size

    try:
        return int(*over_all([find_executable_batch_size(attempt, starting_batch_size=upper)()], "MIN"))
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise UserError(
            "not even one clip fits into the GPU's memory: lower captions_per_clip or the model's sizes"
        ) from error


def remaining(loader: Any, done: int) -> Iterator[tuple[int, int, range, Any]]:
    """The batches of an epoch behind the first `done` clips, of all processes.

    Each comes with how many batches and clips are then done, and with its clips' places in the epoch: with none when
    it only keeps this process in step.
    """
    order, state = loader.batch_sampler, torch.get_rng_state()
    order.done, clips = done, len(order.dataset)
    batches = iter(loader)
    if done:  # a loader draws a random number when it starts, which the run that was cut had drawn before
        torch.set_rng_state(state)
    for batch, first in zip(batches, range(done, clips, order.size), strict=True):
        then = min(first + order.size, clips)
        yield math.ceil(then / order.size), then, order.share(first), batch
