"""A corpus' extraction: features of many clips at once, and the books: what is done, what failed, how long it takes.

A killed run repeats the clips that it was at; one that failed is tried again when its file or the settings changed.
"""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcutils.config import ExtractConfig
from vcutils.runtime.backbones import Backbone
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import Worker, decode_clips
from vcutils.runtime.files import duration, holding, is_held, note, replacing
from vcutils.runtime.store import MANIFEST, Report, append_row, mend_manifest, read_manifest, write_manifest
from vcutils.video import Frames

NOTE_SECONDS = 60.0  # between lines of log.txt


@dataclass(frozen=True)
class Clip:
    """A clip to extract."""

    id: str
    path: Path  # where it can be read now
    source: str  # its file in the corpus, as the manifest names it
    bytes: int  # size and time of change tell a changed file from an unchanged one
    mtime: int

    def stamp(self, num_frames: int) -> dict[str, int]:
        """What tells a changed file, or changed settings, from unchanged ones; part of its manifest row."""
        return {"bytes": self.bytes, "mtime": self.mtime, "num_frames": num_frames}


def features_of_clips(
    backbone: Backbone, clips: Iterable[tuple[str, Path]], config: ExtractConfig, decoders: list[Worker] | None = None
) -> Generator[tuple[str, Frames | VideoError, Tensor]]:
    """(id, frames, features (T, D)) per clip, or (id, VideoError, empty); decoding runs ahead of the network."""
    # On a GPU the smallest group whose frames fill whole batches. A processor takes few frames at once anyway, and
    # a clip alone has the same features in every run: their last bits depend on what else is in the batch.
    filled = min(8, config.batch_size // math.gcd(config.num_frames, config.batch_size))
    group_size = 1 if backbone.device.type == "cpu" else filled
    group: list[tuple[str, Frames]] = []

    def run() -> Iterator[tuple[str, Frames, Tensor]]:
        pixels = np.stack([image for _, frames in group for image in frames.images])
        starts = range(0, len(pixels), config.batch_size)
        features = torch.cat([backbone(pixels[i : i + config.batch_size]) for i in starts])
        parts = features.split([len(frames.images) for _, frames in group])
        yield from ((i, frames, part) for (i, frames), part in zip(group, parts, strict=True))
        group.clear()

    decoded = decode_clips(clips, config.num_frames, backbone.resize, decoders or config.workers, config.patience)
    for i, frames in decoded:
        if isinstance(frames, VideoError):
            yield i, frames, torch.empty(0)
            continue
        group.append((i, frames))
        if len(group) == group_size:
            yield from run()
    if group:
        yield from run()


def clip_rows(
    clips: Iterable[Clip], config: ExtractConfig, backbone: Backbone, decoders: list[Worker] | None = None
) -> Generator[tuple[dict[str, Any], np.ndarray | None]]:
    """(manifest row, features (T, D)) per clip; a row with "error" has no features. Writes nothing: for every engine.

    Features are float16, or float32 where that cannot hold them. `clips` is read a little ahead of the rows; `decoders`
    go on living.
    """
    known: dict[str, Clip] = {}

    def paths() -> Iterator[tuple[str, Path]]:
        for clip in clips:
            known[clip.id] = clip
            yield clip.id, clip.path

    with closing(features_of_clips(backbone, paths(), config, decoders)) as stream:
        for video_id, frames, features in stream:
            clip, array = known.pop(video_id), None
            told: dict[str, Any]
            if isinstance(frames, VideoError):
                told = {"error": str(frames)}
            elif not (finite := features.isfinite().all(dim=1)).all():
                seconds = frames.timestamps[int(finite.int().argmin())]
                told = {"error": f"{clip.path}: NaN or infinite features for the frame at {seconds:.2f} s"}
            else:
                with np.errstate(over="ignore"):  # seen in the next line
                    array = features.numpy().astype(np.float16)
                if not np.isfinite(array).all():  # beyond what float16 can hold
                    array = features.numpy()
                told = {
                    "T": len(array),
                    "D": array.shape[1],
                    "fps": round(frames.fps, 4),
                    "duration": round(frames.duration, 4),
                    "indices": frames.indices,
                    "timestamps": [round(t, 4) for t in frames.timestamps],
                }
            if array is None:
                told["patience"] = config.patience
            made_by = {"backbone": backbone.name, "weights": backbone.weights}
            yield {"id": video_id, "source": clip.source, **clip.stamp(config.num_frames), **made_by, **told}, array


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
        stamped = {i: self._stamped(i) for i in self.clips}
        self.rows = {i: known[i] for i, clip in stamped.items() if self._is_settled(clip, known.get(i, {}))}
        self.todo = {i: clip for i, clip in stamped.items() if i not in self.rows}
        if self.todo:
            mend_manifest(self.manifest)
            self._note(f"{len(self.todo)} clips to do, {len(self.report.skipped)} done before")
        return self

    def _is_settled(self, clip: Clip, row: Mapping[str, Any]) -> bool:
        """Whether a clip was extracted, or failed, as it would be now."""
        if any(row.get(key) != value for key, value in clip.stamp(self.config.num_frames).items()):
            return False
        if "error" in row:
            if settled := row.get("patience", self.config.patience) >= self.config.patience:
                self.report.failed[clip.id] = row["error"]
            return settled
        if settled := (self.report.folder / f"{clip.id}.npy").is_file():
            self.report.skipped.append(clip.id)
        return settled

    def _stamped(self, video_id: str) -> Clip:
        path = self.clips[video_id]
        source = path.relative_to(self.root).as_posix()
        try:
            status = path.stat()
            return Clip(video_id, path, source, status.st_size, int(status.st_mtime))
        except OSError:  # a link to nothing, a file that has just gone: a row with its reason
            return Clip(video_id, path, source, 0, 0)

    def add(self, row: dict[str, Any], features: np.ndarray | None) -> None:
        """Store the features (T, D) of one clip as <id>.npy, and its row of the manifest."""
        path = self.report.folder / f"{row['id']}.npy"
        self.rows[row["id"]] = row
        if features is None:
            path.unlink(missing_ok=True)  # of an earlier, readable state of the clip
            self.report.failed[row["id"]] = row["error"]
        else:
            with replacing(path) as temporary:
                np.save(temporary, features)
            self.report.written.append(row["id"])
            self.report.frames += len(features)
        append_row(self.manifest, row)
        now = monotonic()
        if now - self.noted > NOTE_SECONDS:
            self.noted, spent = now, now - self.started
            done = len(self.report.written) + sum(i in self.todo for i in self.report.failed)
            left = duration(spent / done * (len(self.todo) - done))
            self._note(f"{done} of {len(self.todo)} clips, {self.report.frames / spent:.0f} frames/s, {left} left")

    def __exit__(self, *_: object) -> None:
        with self._hold:
            self.report.seconds = monotonic() - self.started
            if self.todo:
                write_manifest(self.manifest, self.rows)
                counts = f"{len(self.report.written)} clips written, {len(self.report.failed)} failed"
                self._note(f"{counts}, in {duration(self.report.seconds)}")
            if self.count > 1:
                self._merge()

    def _merge(self) -> None:
        """Once all clips are known, one manifest takes the place of the shards'; a shard at work keeps its own."""
        folder = self.report.folder
        with holding(folder, "merge", wait=True):
            if self.all_ids <= set(merged := read_manifest(folder)):
                write_manifest(folder / MANIFEST, merged)
                for part in folder.glob("manifest.shard-*.jsonl"):
                    if part == self.manifest or not is_held(folder, f"extraction{part.stem.removeprefix('manifest')}"):
                        part.unlink(missing_ok=True)

    def _note(self, text: str) -> None:
        note(self.artifacts, f"extract {self.config.backbone}{self.shard}: {text}")
