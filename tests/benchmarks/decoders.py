"""OpenCV against torchcodec: processor seconds for 16 sampled frames a clip, and whether the frames are the same.

    python tests/benchmarks/decoders.py FOLDER [FOLDER …]        folders of clips

Not part of `run.py`: torchcodec is no requirement, and its wheel brings no FFmpeg; the system's must be installed.
One thread each, in turn, on the same clips. Seconds are the processor's: others may use the machine.
"""

import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from torchcodec.decoders import VideoDecoder

from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import Resize
from vcutils.video import Frames, frame_indices, sample_frames

FRAMES, CLIPS, REPEATS = 16, 30, 3
RESIZE = Resize((224, 224), (224, 224))


def opencv(path: Path, each: Callable) -> Frames:
    """What extraction does."""
    return sample_frames(path, FRAMES, each, threads=1)


def torchcodec(path: Path, each: Callable, mode: Any = "exact") -> Frames:
    """The same frames by their numbers; `exact` reads all packets first, `approximate` believes the header."""
    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
    indices = frame_indices(int(decoder.metadata.num_frames or 0), FRAMES)
    batch = decoder.get_frames_at(indices)
    images = [each(image) for image in batch.data.numpy()]
    return Frames(images, indices, batch.pts_seconds.tolist(), decoder.metadata.average_fps or 25.0, len(decoder))


SIDES: dict[str, Callable[[Path, Callable], Frames]] = {
    "OpenCV": opencv,
    "torchcodec, exact": torchcodec,
    "torchcodec, approximate": lambda path, each: torchcodec(path, each, "approximate"),
}


def likeness(ours: Frames, theirs: Frames) -> tuple[bool, bool, float]:
    """Same positions, equal pixels; mean difference of the pixels, 0 to 255."""
    if ours.indices != theirs.indices:
        return False, False, float("nan")
    pairs = zip(ours.images, theirs.images, strict=True)
    difference = float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))
    return True, difference == 0, difference


def main(folders: list[Path]) -> int:
    """Print a line per side and folder."""
    for folder in folders:
        clips = sorted(path for path in folder.iterdir() if path.is_file())
        clips = [clips[i] for i in frame_indices(len(clips), CLIPS)]
        seconds: dict[str, list[list[float]]] = {name: [] for name in SIDES}
        alike: dict[str, list[tuple]] = {name: [] for name in SIDES}
        failed = dict.fromkeys(SIDES, 0)
        for path in clips:
            try:
                whole = opencv(path, lambda image: image)
            except VideoError:
                continue
            for name, side in SIDES.items():
                try:
                    alike[name].append(likeness(whole, side(path, lambda image: image)))
                except (RuntimeError, ValueError):
                    failed[name] += 1
            times: dict[str, list[float]] = {name: [] for name in SIDES}
            for _ in range(REPEATS):
                for name, side in SIDES.items():
                    begun = process_time()
                    try:
                        side(path, RESIZE)
                    except (RuntimeError, ValueError):
                        continue
                    times[name].append(process_time() - begun)
            if all(times.values()):
                for name, spent in times.items():
                    seconds[name].append(spent)
        base = statistics.mean(min(spent) for spent in seconds["OpenCV"])
        for name in SIDES:
            each = statistics.mean(min(spent) for spent in seconds[name])
            same, equal, differences = zip(*alike[name], strict=True)
            print(
                f"{folder.parent.name:<12} {name:<24} {1000 * each:6.0f} ms a clip, {base / each:.2f} times OpenCV; "
                f"of {len(same)} clips {sum(same)} at the same positions, {sum(equal)} of equal pixels, "
                f"mean difference {np.nanmean(differences):.2f} of 255; {failed[name]} not decoded"
            )
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
