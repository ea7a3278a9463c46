"""What extraction costs a clip, in seconds of one core: the starting points of docs/cluster.md, "Cost on paper".

    OMP_NUM_THREADS=1 python tests/benchmarks/cost.py FOLDER        a folder of clips

Processor seconds, the least of some tries: on a shared machine wall time says nothing. Random weights cost what
pretrained ones do. Not part of `run.py`: there is no plain side.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from time import process_time

import numpy as np
import torch

from vcutils.runtime.backbones import load_backbone
from vcutils.video import frame_indices, sample_frames

CLIPS = 18
NETWORKS = (("efficientnet_lite0", 16, 16, 5), ("resnet152", 40, 8, 2))  # frames a clip, frames measured, tries


def spent(work: Callable[[], object], tries: int) -> float:
    """Processor seconds of one call, the least of some."""
    times = []
    for _ in range(tries):
        begun = process_time()
        work()
        times.append(process_time() - begun)
    return min(times)


def main(folder: Path) -> None:
    """Print a line per part."""
    torch.set_num_threads(1)
    clips = sorted(path for path in folder.iterdir() if path.is_file())
    clips = [clips[i] for i in frame_indices(len(clips), CLIPS)]
    for name, frames, few, tries in NETWORKS:
        backbone = load_backbone(name, torch.device("cpu"), pretrained=name != "resnet152")
        decoding = mean(
            spent(lambda p=path, b=backbone, n=frames: sample_frames(p, n, b.resize, threads=1), 2)  # type: ignore
            for path in clips
        )
        pixels = np.random.default_rng(0).integers(0, 255, (few, *backbone.resize.crop, 3), np.uint8)
        network = spent(lambda b=backbone, x=pixels: b(x), tries) * frames / few  # type: ignore[misc]
        dim = backbone(pixels[:1]).shape[1]
        megabytes = sum(path.stat().st_size for path in clips) / len(clips) / 1e6
        print(
            f"{name}, {frames} frames a clip, {len(clips)} clips of {megabytes:.2f} MB: decoding {decoding:.3f}, "
            f"network {network:.2f} processor seconds a clip; features {frames * dim * 2 / 1e3:.1f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
