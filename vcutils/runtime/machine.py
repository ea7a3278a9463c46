"""What this machine has: cores that may be used, the device, the precision that it computes best in."""

import math
import os
import platform
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Cores that this process may use: what affinity and a container's quota leave, not what the machine has."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *_quotas()]))


def _quotas() -> list[int]:
    """Cores by the CPU quotas of the control groups (version 2, then 1) that this process is in."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = [CGROUP / line.partition("::")[2].strip("/") for line in lines if line.startswith("0::")]
    except OSError:  # no Linux
        return []
    folders = {CGROUP, *own, *(parent for path in own for parent in path.parents if CGROUP in parent.parents)}
    texts = [_read(folder / "cpu.max") for folder in folders]
    texts.append(f"{_read(CGROUP / 'cpu/cpu.cfs_quota_us')} {_read(CGROUP / 'cpu/cpu.cfs_period_us')}")
    numbers = [text.split() for text in texts]
    return [math.ceil(int(n[0]) / int(n[1])) for n in numbers if len(n) == 2 and n[0].isdigit() and n[1].isdigit()]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def is_quiet(progress: bool) -> bool:
    """Whether progress bars are off: not asked for, or TQDM_DISABLE is set, which notebooks' bars ignore."""
    return not progress or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")


def pick_device() -> Any:
    """The torch.device to compute on: CUDA when there is one, Apple's mps next, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision_for(setting: str, device: Any) -> str:
    """Accelerate's mixed_precision value: `auto` is bf16 (or fp16 on older GPUs) on CUDA and fp32 elsewhere."""
    import torch

    if setting != "auto":
        return setting
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


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
