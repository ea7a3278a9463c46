"""Decoding in processes of its own, ahead of the network: a clip that crashes or stalls its decoder costs only itself.

A worker is this module without torch. It reads a line of JSON per clip, and answers with a line of JSON and the frames'
raw bytes. Written by hand, since no library's pool survives crashing and stalling tasks without pickle.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from vcutils.runtime.capture import VideoError, cv2, open_clip
from vcutils.runtime.machine import cpu_count
from vcutils.video import Frames, decode_frames, sample_frames

MEMORY_LIMIT = 4 << 30  # bytes of a worker: a forged frame size ends the worker, not the machine
AHEAD = 4  # clips per worker that wait for the network: memory stays bounded
PATIENCE = 120.0  # seconds a clip may take, and as much again for every 25 MB of its file


@dataclass(frozen=True)
class Resize:
    """How a frame becomes the picture that a backbone wants: scaled, then its centre cut out."""

    scaled: int | tuple[int, int]  # the shorter side, or (height, width) into which the whole frame is squeezed
    crop: tuple[int, int]  # (height, width) of the picture
    interpolation: str = "area"  # area is OpenCV's; bilinear, bicubic, … are Pillow's, as torchvision and timm train

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """RGB uint8 (height, width, 3) of any size -> (*crop, 3)."""
        if isinstance(self.scaled, int):
            height, width = frame.shape[:2]
            longer = int(self.scaled * max(height, width) / min(height, width))
            size = (self.scaled, longer) if height <= width else (longer, self.scaled)
        else:
            size = (self.scaled[0], self.scaled[1])
        if self.interpolation == "area":
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        else:
            from PIL import Image

            method = Image.Resampling[self.interpolation.upper()]
            frame = np.asarray(Image.fromarray(frame).resize(size[::-1], method))
        top, left = (round((a - b) / 2) for a, b in zip(size, self.crop, strict=True))
        return np.ascontiguousarray(frame[top : top + self.crop[0], left : left + self.crop[1]])


def frames_at(path: Path, indices: Iterable[int], height: int) -> list[np.ndarray]:
    """The frames at given positions, RGB uint8, scaled to a height in pixels."""

    def scaled(frame: np.ndarray) -> np.ndarray:
        width = max(1, round(frame.shape[1] * height / frame.shape[0]))
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)

    return decode_frames(path, open_clip(path), list(indices), scaled).images


def first_frame(path: Path) -> Frames:
    """The first frame of a clip, without its pixels. Raises VideoError when not even that one decodes."""
    if not open_clip(path).read()[0]:
        raise VideoError(f"{path}: its first frame does not decode; the file is empty, cut or not a video")
    return Frames([], [0], [0.0], fps=25.0, decoded=1)


class Worker:
    """A child process that decodes clip after clip, started anew when it died; `num_frames` 0 tries the first alone."""

    def __init__(self, num_frames: int, resize: Resize | None, patience: float = PATIENCE, threads: int = 1) -> None:
        self.settings = {"num_frames": num_frames, "resize": resize and asdict(resize), "threads": threads}
        self.patience = patience
        self._child: subprocess.Popen | None = None

    def __call__(self, path: Path) -> Frames:
        """Frames of a clip, as sample_frames gives them. Raises VideoError, for a crash and a stall as well."""
        child = self._start()
        size = path.stat().st_size if path.is_file() else 0
        seconds = self.patience * (1 + size / 25e6)
        begun, answer = monotonic(), None
        timer = threading.Timer(seconds, child.kill)
        timer.daemon = True
        timer.start()
        try:
            with suppress(OSError, ValueError):  # the pipe broke
                answer = self._ask(child, path)
        finally:
            timer.cancel()
            timer.join()  # a kill at the last moment must not hit the next clip
        is_late = monotonic() - begun >= seconds
        if answer is None or is_late:
            self.close()
        if answer is None:
            crash = f"the decoder crashed on it (exit code {child.returncode}); convert the clip to MP4 (H.264)"
            late = f"not decoded within {seconds:.0f} s; cut the clip, or leave it out"
            raise VideoError(f"{path}: {late if is_late else crash}")
        if "error" in answer:
            raise VideoError(answer["error"])
        return Frames(**answer)

    def _ask(self, child: Any, path: Path) -> dict[str, Any] | None:
        """The fields of a clip's Frames, or {"error": reason}; None when the answer breaks off."""
        child.stdin.write(json.dumps(self.settings | {"path": str(path)}).encode() + b"\n")
        child.stdin.flush()
        answer = json.loads(child.stdout.readline() or b"null")
        if answer and "error" not in answer:
            pixels = np.empty(answer.pop("shape"), np.uint8)
            if pixels.size and child.stdout.readinto(pixels.data.cast("B")) < pixels.size:
                return None
            answer["images"] = list(pixels)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._child:
            self._child.kill()
            with suppress(OSError), self._child:  # closes the pipes and waits for the end
                pass
            self._child = None

    def _start(self) -> Any:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                [sys.executable, "-c", "from vcutils.runtime.decoding import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"},
            )
        return self._child


def decode_clips(
    clips: Iterable[tuple[str, Path]],
    num_frames: int,
    resize: Resize | None,
    workers: int | list[Worker] | None = None,
    patience: float = PATIENCE,
) -> Iterator[tuple[str, Frames | VideoError]]:
    """(id, frames or the reason why there are none) of clips (id, file) in order, by `workers` processes; None: one per
    core. They start when they are needed. Given ones stay for the next clips.
    """
    own: list[Worker] = []
    if not isinstance(workers, list):
        own = workers = [Worker(num_frames, resize, patience) for _ in range(workers or cpu_count())]
    count, idle = len(workers), workers.copy()  # each of the pool's threads takes one for a clip

    def decode(path: Path) -> Frames | VideoError:
        worker = idle.pop()
        try:
            return worker(path)
        except VideoError as error:
            return error
        finally:
            idle.append(worker)

    pool = ThreadPoolExecutor(count)
    waiting: deque[tuple[str, Future]] = deque()
    try:
        for video_id, path in clips:
            waiting.append((video_id, pool.submit(decode, path)))
            if len(waiting) > AHEAD * count:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        for oldest, future in waiting:
            yield oldest, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in own:
            worker.close()


def unreadable_clips(
    clips: Mapping[str, Path], workers: int | None = None, patience: float = PATIENCE
) -> dict[str, str]:
    """The reason for every clip of which not even the first frame decodes; see `decode_clips`."""
    decoded = decode_clips(clips.items(), 0, None, workers, patience)
    return {video_id: str(frames) for video_id, frames in decoded if isinstance(frames, VideoError)}


def serve() -> None:
    """The worker's side: answer requests on standard input until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints must not get between the answers
    cv2.setNumThreads(1)
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    with suppress(AttributeError, OSError):
        os.nice(5)  # where the network runs on the same cores, it goes first
    for line in requests:
        head, images = _answer(**json.loads(line))
        with suppress(BrokenPipeError):
            answers.write(json.dumps(head).encode() + b"\n" + images)
            answers.flush()


def _answer(path: str, num_frames: int, resize: dict[str, Any] | None, threads: int) -> tuple[dict[str, Any], bytes]:
    """What the worker writes for a clip: a line of JSON, and the frames."""
    clip, each = Path(path), Resize(**resize) if resize else None
    try:
        frames = sample_frames(clip, num_frames, each, threads) if num_frames else first_frame(clip)
        images = np.asarray(frames.images, np.uint8)
    except VideoError as error:
        return {"error": str(error)}, b""
    except (cv2.error, MemoryError, ValueError) as error:
        return {"error": f"{path}: {type(error).__name__} while decoding: {str(error).strip() or 'no memory'}"}, b""
    return vars(frames) | {"images": [], "shape": images.shape}, images.tobytes()
