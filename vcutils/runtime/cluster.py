"""Extraction over a Ray cluster: one task per shard; all nodes must see the same folders."""

from collections.abc import Callable
from typing import Any

from vcutils.runtime.extraction import Report
from vcutils.runtime.settings import UserError


def extract_with_ray(extract_shard: Callable[[tuple[int, int]], Report], shards: int) -> Report:
    """Run `extract_shard((i, n))` for every shard i of n and add the reports up.

    `shards` below 2 means one per Ray CPU. Raises UserError when ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: ray is not installed; run `pip install ray`, or leave --engine local") from error
    ray.init(ignore_reinit_error=True)
    count = shards if shards > 1 else max(2, int(ray.cluster_resources().get("CPU", 2)))
    task: Any = ray.remote(extract_shard)
    parts = ray.get([task.remote((index + 1, count)) for index in range(count)])
    total = Report(parts[0].folder)
    for part in parts:
        total.written += part.written
        total.skipped += part.skipped
        total.failed |= part.failed
        total.frames += part.frames
        total.seconds = max(total.seconds, part.seconds)
    return total
