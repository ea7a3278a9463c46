"""Features and captions become padded, masked batches, with K captions per clip.

Frames and words that do not exist are padding, and a mask says which; everything downstream obeys
the masks, so padding is never attended to and never learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vcutils.config import Config, ExtractConfig, UserError, suited
from vcutils.corpus import Corpus, read_splits
from vcutils.features import feature_folder
from vcutils.runtime.frames import Lengths, lengths_of
from vcutils.runtime.sampler import ClipOrder, derange
from vcutils.runtime.store import FeatureStore
from vcutils.vocab import PAD, Vocabulary

Item = tuple[str, np.ndarray, list[list[int]]]  # id, features (T, D), K captions as word ids


@dataclass(frozen=True)
class CaptionData:
    """Everything that a run learns from or is measured on."""

    root: Path  # the corpus folder
    store: FeatureStore
    captions: Mapping[str, Sequence[str]]
    splits: Mapping[str, Sequence[str]]  # ids with captions and features only
    vocabulary: Vocabulary

    def suited(self, config: Config) -> Config:
        """The settings with None filled in for this corpus' size (`config.suited`)."""
        train = self.splits["train"][:30_001]  # more clips than that make no difference
        return suited(config, len(train), sum(len(self.captions[i]) for i in train))


def load_data(corpus: Corpus, artifacts: Path, extract: ExtractConfig) -> CaptionData:
    """The data of a corpus after notebooks 01 and 02: features, splits.json and vocab.json.

    Clips whose features are missing (their extraction failed) are left out. Raises UserError when
    a stage has not been run.
    """
    if not (artifacts / "splits.json").is_file():
        hint = "run notebook 02 or `python -m vcutils vocab CORPUS`"
        raise UserError(f"{artifacts / 'splits.json'}: no split yet; {hint}")
    store = FeatureStore(feature_folder(corpus, artifacts, extract))
    splits = corpus.indexed or read_splits(artifacts / "splits.json")
    for name, ids in splits.items():
        splits[name] = store.usable(ids, corpus.captions)
        if not splits[name]:
            reason = f"no features for any {name} clip of {artifacts / 'splits.json'}"
            raise UserError(f"{store.folder}: {reason}; extract them, or make the split again")
    vocabulary = Vocabulary.load(artifacts / "vocab.json")
    return CaptionData(corpus.root, store, corpus.captions, splits, vocabulary)


class CaptionDataset(Dataset):
    """One item per clip: its features and K of its captions, drawn anew each epoch.

    The draw depends on (seed, epoch, position) alone, so that workers, processes and resumed runs
    agree. `captions_per_clip=None` shows every caption: for measuring, where nothing is drawn.
    `shuffle_features` gives each clip another clip's features: the control that cannot see.
    """

    def __init__(
        self,
        data: CaptionData,
        split: str,
        captions_per_clip: int | None,
        max_length: int,
        seed: int = 0,
        frame_dropout: float = 0.0,
        shuffle_features: bool = False,
    ) -> None:
        self.data, self.ids = data, data.splits[split]
        self.captions_per_clip, self.max_length = captions_per_clip, max_length
        self.seed, self.epoch, self.frame_dropout = seed, 0, frame_dropout
        self.sources = derange(self.ids, seed) if shuffle_features else self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Item:
        video_id = self.ids[position]
        captions = self.data.captions[video_id]
        features = self.data.store[self.sources[position]]
        if self.captions_per_clip is not None:
            generator = np.random.default_rng((self.seed, self.epoch, position))
            order = generator.permutation(len(captions))  # a clip with fewer than K repeats some
            captions = [captions[order[k % len(order)]] for k in range(self.captions_per_clip)]
            if self.frame_dropout:
                stays = generator.random(len(features)) >= self.frame_dropout
                features = features[stays] if stays.any() else features
        encode = self.data.vocabulary.encode
        return video_id, features, [encode(caption, self.max_length) for caption in captions]


class Batch(NamedTuple):
    """B clips with K captions each."""

    ids: list[str]  # B
    features: Tensor  # (B, T, D) float32, zeros where frame_mask is False
    frame_mask: Tensor  # (B, T) bool, True on frames that exist
    captions: Tensor  # (B, K, L+1) int64: <start> words <end>, then <pad>
    lengths: Lengths | None = None  # of clips and captions: on the CPU, wherever the tensors are

    @property
    def inputs(self) -> Tensor:
        """(B, K, L) what the decoder reads: everything but the last word."""
        return self.captions[:, :, :-1]

    @property
    def targets(self) -> Tensor:
        """(B, K, L) what it must say: the inputs shifted by one."""
        return self.captions[:, :, 1:]


def collate(items: Sequence[Item]) -> Batch:
    """Pad B items to one batch; a clip with fewer captions than others gets rows of padding."""
    ids, arrays, captions = zip(*items, strict=True)
    features, frame_mask = pad_frames(arrays)
    longest = max(len(words) for rows in captions for words in rows)
    padded = torch.full((len(ids), max(map(len, captions)), longest), PAD)
    for b, rows in enumerate(captions):
        for k, words in enumerate(rows):
            padded[b, k, : len(words)] = torch.tensor(words)
    return Batch([*ids], features, frame_mask, padded, lengths_of(frame_mask, padded[..., 1:], PAD))


def pad_frames(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Features (B, T, D) float32 padded with zeros, and their mask (B, T), of B arrays (T_b, D)."""
    lengths = [len(a) for a in arrays]
    features = torch.zeros(len(arrays), max(lengths), arrays[0].shape[1])
    for row, array in enumerate(arrays):
        features[row, : len(array)] = torch.from_numpy(np.asarray(array))
    return features, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def make_loader(dataset: CaptionDataset, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Batches of clips to train on, in an order that depends on (seed, epoch) alone."""
    return DataLoader(
        dataset, batch_sampler=ClipOrder(dataset, batch_size), collate_fn=collate,
        num_workers=num_workers, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
