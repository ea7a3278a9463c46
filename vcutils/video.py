"""A clip becomes uniformly sampled RGB frames with their times.

Decoding is sequential: seeking is not exact in most files, and the frame count in a header is only
a claim. Frames are taken at the centres of `num_frames` equal parts of what really decodes
(Wang et al. 2016, Temporal Segment Networks, section 3.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcutils.runtime.capture import VideoError, cv2, open_clip


@dataclass(frozen=True)
class Frames:
    """Sampled frames of one clip."""

    images: list[Any]  # T times (height, width, 3) uint8 RGB, or what `each` made of it
    indices: list[int]  # position of each frame in the clip, 0-based
    timestamps: list[float]  # seconds from the clip's start
    fps: float  # frames per second by the header
    decoded: int  # frames that really decode, whatever the header claims

    @property
    def duration(self) -> float:
        """Length of the clip in seconds, by the frames that decode."""
        return self.decoded / self.fps


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Centres of `num_frames` equal parts of `total` frames; all frames when there are fewer."""
    count = min(total, num_frames)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def sample_frames(
    path: Path, num_frames: int, each: Callable[[np.ndarray], Any] | None = None, threads: int = 0
) -> Frames:
    """Decode up to `num_frames` RGB frames, evenly spread; a short clip gives fewer, never padding.

    `each` is applied to every sampled frame as it comes, so that only its results are held in
    memory. `threads` is what the decoder may use, 0 = as it likes. Raises VideoError.
    """
    capture = open_clip(path, threads)
    claimed = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    frames = decode_frames(path, capture, frame_indices(claimed, num_frames), each)
    if frames.decoded != claimed:  # the header lied: now the true count is known
        wanted = frame_indices(frames.decoded, num_frames)
        frames = decode_frames(path, open_clip(path, threads), wanted, each)
    return frames


def decode_frames(
    path: Path, capture: cv2.VideoCapture, wanted: Sequence[int], each: Callable | None
) -> Frames:
    """One sequential pass to the clip's end: keep the frames at `wanted` positions, count all.

    Raises VideoError when none of them decodes.
    """
    fps = capture.get(cv2.CAP_PROP_FPS)
    timed = 1e-3 <= fps <= 1e4  # else the header is broken, and so are the times
    fps = fps if timed else 25.0
    positions, count = set(wanted), 0
    images: list[Any] = []
    indices: list[int] = []
    timestamps: list[float] = []
    try:
        while capture.grab():  # goes to the next frame, and decodes only what retrieve asks for
            if count in positions:
                milliseconds = capture.get(cv2.CAP_PROP_POS_MSEC)
                ok, bgr = capture.retrieve()
                if ok:
                    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
                    images.append(each(rgb) if each else rgb)
                    indices.append(count)
                    # Containers without time stamps report 0 or less for every frame.
                    known = timed and milliseconds > 0
                    timestamps.append(milliseconds / 1000 if known else count / fps)
            count += 1
    finally:
        capture.release()
    if count == 0 or (wanted and not images and count > max(wanted)):
        raise VideoError(f"{path}: no frame decodes; the file is empty, cut or not a video")
    if timestamps != sorted(timestamps):  # a damaged clip: its frames are in order, its times not
        timestamps = [i / fps for i in indices]
    return Frames(images, indices, timestamps, fps, count)
