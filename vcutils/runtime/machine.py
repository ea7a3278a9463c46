"""What this machine has: cores that may be used, the device to compute on."""

import math
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Cores that this process may use: what affinity and a container's quota leave, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quotas()]))


def _quotas() -> list[int]:
    """Cores by the CPU quotas of the control groups (version 2, then 1) that this process is in."""
    group, quotas = CGROUP, []
    with suppress(OSError):  # no Linux
        group /= Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
    files = [[folder / "cpu.max"] for folder in (group, *group.parents)]
    files.append([CGROUP / "cpu/cpu.cfs_quota_us", CGROUP / "cpu/cpu.cfs_period_us"])
    for paths in files:
        with suppress(OSError, ValueError):  # no such file; "max" is no limit, and neither is -1
            quota, period = " ".join(path.read_text() for path in paths).split()
            quotas.append(math.ceil(int(quota) / int(period)))
    return [quota for quota in quotas if quota > 0]


def is_quiet(progress: bool) -> bool:
    """Whether progress bars are off: not asked for, or TQDM_DISABLE is set, which notebooks' bars ignore."""
    return not progress or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")


def pick_device() -> Any:
    """The torch.device to compute on: CUDA when there is one, Apple's mps next, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def describe() -> dict[str, str]:
    """The GPU with its memory, the cores, and versions."""
    import torch

    from vcutils.runtime.capture import cv2

    gpu = pick_device().type
    if gpu == "cuda":
        about = torch.cuda.get_device_properties(0)
        gpu = f"{about.name}, {about.total_memory / 1e9:.0f} GB"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    return {"GPU": "none" if gpu == "cpu" else gpu, "cores": str(cpu_count()), **versions}
