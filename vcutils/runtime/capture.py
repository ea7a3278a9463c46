"""Opening a video file safely: only its own bytes are read, whatever it claims to be."""

import os
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # broken clips are reported by us, once, with their name
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

try:
    import cv2
except ImportError as error:  # opencv-python links libraries of a desktop
    raise ImportError(
        f"OpenCV cannot be loaded ({error}); on a machine without a desktop: pip uninstall opencv-python, then "
        "pip install opencv-python-headless"
    ) from error

from vcutils.runtime.settings import UserError

# A clip may be a playlist, a concatenation or a stream description under a video's name: none of them is followed.
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,gif"
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"protocol_whitelist;file|format_whitelist;{_FORMATS}"
MAX_THREADS = 8  # of a decoder


class VideoError(UserError):
    """A clip that cannot be decoded; the message names the file and the reason."""


def open_clip(path: Path, threads: int = 0) -> cv2.VideoCapture:
    """A capture of a video file, with so many decoder threads, 0 = as it likes. Raises VideoError when unreadable."""
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
