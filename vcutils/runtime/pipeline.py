"""Features of many clips: decoding runs ahead of the network, and batches are filled across clips."""

import math
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vcutils.config import ExtractConfig
from vcutils.runtime.backbones import Backbone
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import decode_clips
from vcutils.video import Frames


def features_of_clips(
    backbone: Backbone, clips: Mapping[str, Path], config: ExtractConfig
) -> Generator[tuple[str, Frames | VideoError, Tensor]]:
    """(id, frames, features (T, D)) per clip, or (id, VideoError, empty)."""
    # The smallest group whose frames fill whole batches.
    group_size = min(8, config.batch_size // math.gcd(config.num_frames, config.batch_size))
    group: list[tuple[str, Frames]] = []

    def run() -> Iterator[tuple[str, Frames, Tensor]]:
        pixels = np.stack([image for _, frames in group for image in frames.images])
        starts = range(0, len(pixels), config.batch_size)
        features = torch.cat([backbone(pixels[i : i + config.batch_size]) for i in starts])
        parts = features.split([len(frames.images) for _, frames in group])
        yield from ((i, frames, part) for (i, frames), part in zip(group, parts, strict=True))
        group.clear()

    decoded = decode_clips(clips, config.num_frames, backbone.resize, config.workers, config.patience)
    for i, frames in decoded:
        if isinstance(frames, VideoError):
            yield i, frames, torch.empty(0)
            continue
        group.append((i, frames))
        if len(group) == group_size:
            yield from run()
    if group:
        yield from run()
