"""Frames become features, and a whole corpus becomes a folder of features.

A backbone is an ImageNet network without its classifier: one frame in, D numbers out. The folder
holds one `<id>.npy` (T, D) float16 per clip and `manifest.jsonl`, a row per clip with its source
and its frames' times, or the reason why it failed. A run that was cut goes on where it stopped.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vcutils.config import ExtractConfig
from vcutils.corpus import Corpus
from vcutils.runtime.backbones import Backbone, load_backbone
from vcutils.runtime.decoding import Worker
from vcutils.runtime.extraction import Ledger, Report, clip_rows
from vcutils.runtime.machine import cpu_count, is_quiet
from vcutils.video import Frames


@torch.inference_mode()
def frame_features(backbone: Backbone, frame: np.ndarray) -> Tensor:
    """Features (D,) of one RGB frame of any size: resize, normalise, run the network.

    The plain form of `backbone(pixels)`, which takes many resized frames at once.
    """
    pixels = torch.from_numpy(backbone.resize(frame)).float()  # (height, width, 3), 0 to 255
    normal = (pixels - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    batch = normal.permute(2, 0, 1)[None]  # (1, 3, height, width)
    return backbone.model(batch.to(backbone.device))[0].float().cpu()


def clip_features(backbone: Backbone, path: Path, config: ExtractConfig) -> tuple[Tensor, Frames]:
    """Features (T, D) of one clip, and its frames as the network sees them. Raises VideoError."""
    with closing(Worker(config.num_frames, backbone.resize, config.patience, cpu_count())) as read:
        frames = read(path)
    return backbone(np.stack(frames.images)), frames


def feature_folder(corpus: Corpus, artifacts: Path, config: ExtractConfig) -> Path:
    """Where the features of a corpus lie: its own, else those of the settings' backbone.

    Everything that reads or writes features asks here. `own_features=False` prefers the backbone's.
    """
    if config.own_features and corpus.features:
        return corpus.features.get(config.backbone) or next(iter(corpus.features.values()))
    return corpus.features.get(config.backbone) or artifacts / "features" / config.backbone


def extract_corpus(
    corpus: Corpus,
    artifacts: Path,
    config: ExtractConfig,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Report:
    """Features of every clip of a corpus into artifacts/features/<backbone>/; skips what is done.

    `shard` (i, n), counted from 1, takes every n-th clip, for n processes side by side. A clip that
    fails becomes a manifest row with its reason, and the rest goes on. Raises UserError.
    """
    with Ledger(corpus.root, corpus.clips, artifacts, config, shard) as ledger:
        if not ledger.todo:
            return ledger.report
        backbone = load_backbone(config.backbone)
        bar = tqdm(
            desc=f"{config.backbone} features", total=len(ledger.todo), unit="clip", leave=False,
            disable=is_quiet(progress),
        )  # fmt: skip
        rows = clip_rows(ledger.todo.values(), config, backbone)
        with bar, closing(rows):
            for row, features in rows:  # a row with "error" has no features
                ledger.add(row, features)
                bar.update()
    return ledger.report
