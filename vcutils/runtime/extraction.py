"""A corpus' extraction: features of many clips at once, and the books: what is done, what failed, how long it takes.

A killed run repeats the clips that it was at; one that failed is tried again when its file or the settings changed.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcutils.config import ExtractConfig
from vcutils.runtime.backbones import Backbone
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import decode_clips
from vcutils.runtime.files import duration, holding, note, replacing
from vcutils.runtime.settings import UserError
from vcutils.runtime.store import MANIFEST, append_row, mend_manifest, read_manifest, write_manifest
from vcutils.video import Frames

NOTE_SECONDS = 60.0  # between lines of log.txt


def features_of_clips(
    backbone: Backbone, clips: Mapping[str, Path], config: ExtractConfig
) -> Generator[tuple[str, Frames | VideoError, Tensor]]:
    """(id, frames, features (T, D)) per clip, or (id, VideoError, empty); decoding runs ahead of the network."""
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


@dataclass
class Report:
    """What an extraction did."""

    folder: Path
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # done by an earlier run
    failed: dict[str, str] = field(default_factory=dict)  # id -> reason
    frames: int = 0
    seconds: float = 0.0


class Ledger:
    """Holds the folder of shard (i, n), counted from 1, and writes its manifest; `todo` are the clips to extract."""

    def __init__(
        self, root: Path, clips: Mapping[str, Path], artifacts: Path, config: ExtractConfig, shard: tuple[int, int]
    ) -> None:
        self.root, self.artifacts, self.config, self.all_ids = root, artifacts, config, set(clips)
        index, self.count = shard
        self.shard = "" if self.count == 1 else f".shard-{index}-of-{self.count}"
        self.clips = {i: clips[i] for i in sorted(clips)[index - 1 :: self.count]}
        self.report = Report(artifacts / "features" / config.backbone)
        self.manifest = self.report.folder / f"manifest{self.shard}.jsonl"
        self.started = self.noted = monotonic()

    def __enter__(self) -> "Ledger":
        self._hold = ExitStack()
        self._hold.enter_context(holding(self.report.folder, f"extraction{self.shard}"))
        known = read_manifest(self.report.folder)
        self.rows = {i: known[i] for i in self.clips if self._is_settled(i, known.get(i, {}))}
        self.todo = {i: path for i, path in self.clips.items() if i not in self.rows}
        if self.todo:
            mend_manifest(self.manifest)
            self._note(f"{len(self.todo)} clips to do, {len(self.report.skipped)} done before")
        return self

    def _is_settled(self, video_id: str, row: Mapping[str, Any]) -> bool:
        """Whether a clip was extracted, or failed, as it would be now."""
        if any(row.get(key) != value for key, value in self._stamp(video_id).items()):
            return False
        if "error" in row:
            if settled := row.get("patience", self.config.patience) >= self.config.patience:
                self.report.failed[video_id] = row["error"]
            return settled
        if settled := (self.report.folder / f"{video_id}.npy").is_file():
            self.report.skipped.append(video_id)
        return settled

    def _stamp(self, video_id: str) -> dict[str, int]:
        """What tells a changed file, or changed settings, from unchanged ones."""
        try:
            status = self.clips[video_id].stat()
            size, time = status.st_size, int(status.st_mtime)
        except OSError:  # a link to nothing, a file that has just gone: a row with its reason
            size, time = 0, 0
        return {"bytes": size, "mtime": time, "num_frames": self.config.num_frames}

    def add(self, video_id: str, frames: Frames | VideoError, features: Tensor, made_by: Mapping[str, str]) -> None:
        """Store the features (T, D) of one clip, or note why there are none; `made_by` goes into its row as it is."""
        source = self.clips[video_id].relative_to(self.root).as_posix()
        row: dict[str, Any] = {"id": video_id, "source": source, **self._stamp(video_id), **made_by}
        self.rows[video_id] = row = row | self._store(video_id, frames, features)
        if "error" in row:
            self.report.failed[video_id] = row["error"]
        else:
            self.report.written.append(video_id)
            self.report.frames += len(features)
        append_row(self.manifest, row)
        now = monotonic()
        if now - self.noted > NOTE_SECONDS:
            self.noted, spent = now, now - self.started
            done = len(self.report.written) + sum(i in self.todo for i in self.report.failed)
            left = duration(spent / done * (len(self.todo) - done))
            self._note(f"{done} of {len(self.todo)} clips, {self.report.frames / spent:.0f} frames/s, {left} left")

    def _store(self, video_id: str, frames: Frames | VideoError, features: Tensor) -> dict[str, Any]:
        """Write <id>.npy; its part of the manifest's row."""
        path, error = self.report.folder / f"{video_id}.npy", ""
        if isinstance(frames, VideoError):
            error = str(frames)
        elif not (finite := features.isfinite().all(dim=1)).all():
            seconds = frames.timestamps[int(finite.int().argmin())]
            error = f"{self.clips[video_id]}: NaN or infinite features for the frame at {seconds:.2f} s"
        if error:
            path.unlink(missing_ok=True)  # of an earlier, readable state of the clip
            return {"error": error, "patience": self.config.patience}
        assert isinstance(frames, Frames)
        with np.errstate(over="ignore"):  # seen in the next line
            array = features.numpy().astype(np.float16)
        if not np.isfinite(array).all():  # beyond what float16 can hold
            array = features.numpy()
        with replacing(path) as temporary:
            np.save(temporary, array)
        return {
            "T": len(array),
            "D": array.shape[1],
            "fps": round(frames.fps, 4),
            "duration": round(frames.duration, 4),
            "indices": frames.indices,
            "timestamps": [round(t, 4) for t in frames.timestamps],
        }

    def __exit__(self, *_: object) -> None:
        with self._hold:
            self.report.seconds = monotonic() - self.started
            if self.todo:
                write_manifest(self.manifest, self.rows)
                counts = f"{len(self.report.written)} clips written, {len(self.report.failed)} failed"
                self._note(f"{counts}, in {duration(self.report.seconds)}")
            if self.count > 1 and self.all_ids <= set(merged := read_manifest(self.report.folder)):
                write_manifest(self.report.folder / MANIFEST, merged)
                for part in self.report.folder.glob("manifest.shard-*.jsonl"):  # merged now
                    part.unlink(missing_ok=True)

    def _note(self, text: str) -> None:
        note(self.artifacts, f"extract {self.config.backbone}{self.shard}: {text}")


def extract_with_ray(extract_shard: Callable[[tuple[int, int]], Report], shards: int) -> Report:
    """Run `extract_shard((i, n))` for every shard i of n over a Ray cluster and add the reports up.

    All nodes must see the same folders. `shards` below 2 means one per Ray CPU. Raises UserError without ray.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: ray is not installed; run `pip install ray`, or leave --engine local") from error
    ray.init(ignore_reinit_error=True)
    count = shards if shards > 1 else max(2, int(ray.cluster_resources().get("CPU", 2)))
    task: Any = ray.remote(extract_shard)
    parts = ray.get([task.remote((index + 1, count)) for index in range(count)])
    total = Report(parts[0].folder)
    for part in parts:
        total.written += part.written
        total.skipped += part.skipped
        total.failed |= part.failed
        total.frames += part.frames
        total.seconds = max(total.seconds, part.seconds)
    return total
