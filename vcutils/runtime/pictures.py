"""Single frames of a clip: to show them, or to see whether it decodes at all."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vcutils.runtime.capture import cv2, open_clip
from vcutils.video import Frames, decode_frames


def frames_at(path: Path, indices: Iterable[int], height: int | None = None) -> list[np.ndarray]:
    """The frames at given positions, RGB uint8, optionally scaled to a height in pixels."""

    def scaled(frame: np.ndarray) -> np.ndarray:
        if height is None:
            return frame
        width = max(1, round(frame.shape[1] * height / frame.shape[0]))
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)

    return decode_frames(path, open_clip(path), list(indices), scaled).images


def check_first_frame(path: Path) -> Frames:
    """The first frame of a clip, without its pixels. Raises VideoError when not even that one decodes."""
    return decode_frames(path, open_clip(path), [0], lambda frame: frame[:0], stop_after_last=True)
