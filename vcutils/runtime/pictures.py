"""Single frames of a clip: to show them, or to see whether it decodes at all."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vcutils.runtime.capture import VideoError, cv2, open_clip
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
    capture = open_clip(path)
    is_read, frame = capture.read()
    capture.release()
    if not is_read:
        raise VideoError(f"{path}: its first frame does not decode; the file is empty, cut or not a video")
    return Frames([frame[:0]], [0], [0.0], fps=25.0, decoded=1)
