"""A clip becomes uniformly sampled RGB frames with timestamps.

Decoding is sequential: seeking is not exact in most files, and the frame count in a header is only a claim. Frames
are taken at the centres of `num_frames` equal parts (Wang et al. 2016, Temporal Segment Networks, section 3.1) of
what really decodes.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # broken clips are reported by us, once, with their name
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
import cv2

from vcutils.config import UserError

# A clip may be a playlist, a concatenation or a stream description under a video's name: none of them is followed.
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,gif"
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"protocol_whitelist;file|format_whitelist;{_FORMATS}"
MAX_THREADS = 8  # of a decoder


class VideoError(UserError):
    """A clip that cannot be decoded; the message names the file and the reason."""


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
    """Centres of `num_frames` equal parts of `total` frames; every frame once when there are fewer."""
    count = min(total, num_frames)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def sample_frames(
    path: Path, num_frames: int, each: Callable[[np.ndarray], Any] | None = None, threads: int = 0
) -> Frames:
    """Decode up to `num_frames` RGB frames, evenly spread; a short clip gives fewer, never padding.

    `each` is applied to every sampled frame at once, so that only its results are held in memory. `threads` is what
    the decoder may use, 0 = as it likes. Raises VideoError for a missing, unreadable or empty file.
    """
    capture = _open(path, threads)
    claimed = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    frames = _decode(path, capture, frame_indices(claimed, num_frames) if claimed > 0 else [], each)
    if frames.decoded != claimed:  # the header lied: now the true count is known
        frames = _decode(path, _open(path, threads), frame_indices(frames.decoded, num_frames), each)
    return frames


def frames_at(path: Path, indices: Iterable[int], height: int | None = None) -> list[np.ndarray]:
    """The frames at given positions (as noted in the manifest), RGB uint8, optionally scaled to a height in pixels."""

    def scaled(frame: np.ndarray) -> np.ndarray:
        if height is None:
            return frame
        width = max(1, round(frame.shape[1] * height / frame.shape[0]))
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)

    return _decode(path, _open(path), list(indices), scaled).images


def check_first_frame(path: Path) -> None:
    """Raise VideoError when not even the first frame of a clip decodes."""
    _decode(path, _open(path), [0], None, stop_after_last=True)


def _open(path: Path, threads: int = 0) -> cv2.VideoCapture:
    if not Path(path).is_file():
        reason = "not a plain file, or a broken link; give a video file" if os.path.lexists(path) else "no such file"
        raise VideoError(f"{path}: {reason}")
    try:
        (name := os.path.abspath(path)).encode()
    except UnicodeEncodeError as error:
        raise VideoError(f"{path!a}: OpenCV opens no file whose name is not UTF-8; rename it") from error
    # Every thread holds frames of its own: with one per core of a large machine, memory would run out.
    settings = [cv2.CAP_PROP_N_THREADS, min(threads, MAX_THREADS)] if threads else []
    # Without "file:" a name such as cache:other.mp4 or concat:a|b opens other files.
    capture = cv2.VideoCapture(f"file:{name}", cv2.CAP_FFMPEG, settings)
    if not capture.isOpened():
        raise VideoError(f"{path}: not a video that can be decoded; play it, or convert it to MP4 (H.264)")
    return capture


def _decode(
    path: Path, capture: cv2.VideoCapture, wanted: list[int], each: Callable | None, stop_after_last: bool = False
) -> Frames:
    """One sequential pass to the capture's end: keep the frames at `wanted` positions, count all."""
    try:
        fps = capture.get(cv2.CAP_PROP_FPS)
        timed = 1e-3 <= fps <= 1e4  # else the header is broken, and so are the times that follow from it
        fps = fps if timed else 25.0
        targets, images, indices, timestamps = set(wanted), [], [], []
        count = 0
        while capture.grab():
            if count in targets:
                milliseconds = capture.get(cv2.CAP_PROP_POS_MSEC)
                ok, bgr = capture.retrieve()
                if ok:
                    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
                    images.append(each(rgb) if each else rgb)
                    indices.append(count)
                    # Containers without time stamps report 0 or less for every frame.
                    timestamps.append(milliseconds / 1000 if timed and milliseconds > 0 else count / fps)
            count += 1
            if stop_after_last and len(images) == len(targets):
                break
    finally:
        capture.release()
    if count == 0 or (wanted and not images and count > max(wanted)):
        raise VideoError(f"{path}: no frame decodes; the file is empty, cut or not a video")
    if timestamps != sorted(timestamps):  # a damaged clip: its frames do follow each other, its time stamps do not
        timestamps = [i / fps for i in indices]
    return Frames(images, indices, timestamps, fps, count)
