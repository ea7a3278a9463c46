"""Training in several processes: their place among each other, and the numbers that they share.

Every process calls these functions at the same point of the run; alone, each returns what it is given.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, distributed

from vcutils.runtime.settings import UserError

LAUNCHERS = ("LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and those of MPI


def join() -> PartialState:
    """Take a place among the processes that a launcher started; without a GPU they talk by gloo, on the CPU.

    Raises UserError where `accelerate launch --cpu` was to start several, and has started one.
    """
    is_launched = any(name in os.environ for name in LAUNCHERS)
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if forced and not is_launched and "MASTER_PORT" in os.environ:  # accelerate sets it for two or more
        raise UserError(
            "`accelerate launch --cpu` starts a single process, whatever --num_processes says: write --multi_gpu in "
            "place of --cpu (it serves CPUs too), or use `torchrun --standalone --nproc-per-node N -m vcutils train`"
        )
    return PartialState(cpu=forced or (is_launched and not torch.cuda.is_available()))


def is_alone() -> bool:
    """Whether this is the only process."""
    return not (distributed.is_available() and distributed.is_initialized())


def place() -> tuple[int, int]:
    """The number of the process, and how many there are; number 0 is the main one, which writes."""
    return (0, 1) if is_alone() else (distributed.get_rank(), distributed.get_world_size())


def part_ways(seed: int) -> None:
    """Give each process random numbers of its own, for its dropout; the main one keeps those of the seed."""
    if rank := place()[0]:
        torch.manual_seed(seed + 1_000_003 * rank)


def own(items: Any) -> Any:
    """The process' share of a sequence: every N-th, since neighbours take about the same time."""
    rank, processes = place()
    return items[rank::processes]


def joined(part: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """What all processes have for the keys, in their order."""
    whole = {key: value for parts in of_all(dict(part)) for key, value in parts.items()}
    return {key: whole[key] for key in keys}


def over_all(numbers: Sequence[float], how: str = "SUM") -> list[float]:
    """The sum (or "MIN", "MAX") of each number over all processes."""
    if is_alone():
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64, device=PartialState().device)
    distributed.all_reduce(tensor, getattr(distributed.ReduceOp, how))
    return tensor.tolist()


def by_main(value: Any) -> Any:
    """The main process' value."""
    return broadcast_object_list([value])[0]


def of_all(value: Any) -> list[Any]:
    """Every process' value, by rank."""
    return gather_object([value])


def weighed(loss: Tensor, words: int) -> Tensor:
    """A mean over `words` words, such that the mean over all processes is the mean over the words of all.

    That is how gradients are averaged. The CPU does not wait for a GPU.
    """
    if is_alone():
        return loss
    total = torch.full((), float(words), device=loss.device)
    distributed.all_reduce(total)
    return loss * (words * distributed.get_world_size() / total)
