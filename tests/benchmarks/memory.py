"""Peak memory of the process that decodes: one hour of 1080p at 30 frames a second, and 8K. Linux only, minutes.

    python tests/benchmarks/memory.py

Not part of `run.py`: memory has no plain side to compare with, only a limit (1.5 GB for the hour).
"""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np

from vcutils.runtime.decoding import Resize, Worker

LIMIT_MB = 1500
KEY_INTERVAL = 12  # frames that OpenCV's encoder puts between two whole pictures


def write(path: Path, codec: str, fps: float, frames: list, *settings: int) -> Path:
    """Encode frames, or store packets where `settings` say so."""
    size = (1920, 1080) if frames[0].ndim < 3 else frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, size, settings)
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def pictures(height: int, width: int, count: int) -> list[np.ndarray]:
    """Frames of soft colours in which a small square changes."""
    soft = np.random.default_rng(0).integers(0, 255, (2, 3, 3), np.uint8)
    frames = [cv2.resize(soft, (width, height)) for _ in range(count)]
    for n, frame in enumerate(frames):
        frame[:40, :40] = n * 7 % 255
    return frames


def one_hour(folder: Path) -> Path:
    """108,000 frames: the packets of one group of pictures, over and over, since encoding them would take an hour."""
    group = write(folder / "group.avi", "XVID", 30, pictures(1080, 1920, KEY_INTERVAL))
    capture = cv2.VideoCapture(str(group), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    packets = [np.array(capture.read()[1]).reshape(1, -1) for _ in range(KEY_INTERVAL)]
    raw = (cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1, cv2.VIDEOWRITER_PROP_KEY_INTERVAL, KEY_INTERVAL)
    return write(folder / "hour.avi", "XVID", 30, packets * (3600 * 30 // KEY_INTERVAL), *raw)


def peak(path: Path, threads: int) -> int:
    """Decode 40 frames of a clip in a new process; its peak memory in MB."""
    worker = Worker(40, Resize((224, 224), (224, 224)), patience=1200, threads=threads)
    started = perf_counter()
    frames = worker(path)
    took = perf_counter() - started
    status = Path(f"/proc/{worker._child.pid}/status").read_text()
    worker.close()
    resident, reserved = (int(status.split(f"{name}:")[1].split()[0]) // 1024 for name in ("VmHWM", "VmPeak"))
    print(
        f"{path.name:<10} {path.stat().st_size / 1e6:6.0f} MB  {frames.decoded} frames  {threads} thread(s)  "
        f"{took:6.1f} s  peak {resident} MB resident, {reserved} MB reserved"
    )
    return resident


def main() -> int:
    """Print the figures; 1 when the hour needs more than the limit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix, codec in ((".mp4", "mp4v"), (".avi", "MJPG")):
            clip = write(folder / f"8k{suffix}", codec, 10, pictures(4320, 7680, 3) * 3)
            for threads in (1, 8):
                peak(clip, threads)
        return int(peak(one_hour(folder), 1) > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
