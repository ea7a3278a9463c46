"""Features and captions become padded, masked batches, with several captions per clip.

Frames that do not exist and words that do not exist are padding, and a mask says which; everything downstream obeys
the masks, so padding is never attended to and never learned.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vcutils.config import Config, ExtractConfig, UserError, suited
from vcutils.corpus import Corpus, read_splits
from vcutils.extract import feature_folder
from vcutils.store import FeatureStore
from vcutils.vocab import PAD, Vocabulary

ENCODED_CAPTIONS = 100_000  # kept in memory once they are cut into words; any further ones are cut again


@dataclass
class Batch:
    """B clips with K captions each."""

    ids: list[str]  # B
    features: Tensor  # (B, T, D) float32, zeros where frame_mask is False
    frame_mask: Tensor  # (B, T) bool, True on frames that exist
    captions: Tensor  # (B, K, L+1) int64: <start> words <end>, then <pad>
    weights: Tensor | None = None  # (B, K) how much each caption's loss counts; None: all alike

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch on another device."""
        return dataclasses.replace(self, **{n: t.to(device, non_blocking=non_blocking) for n, t in self._tensors()})

    def pin_memory(self) -> "Batch":
        """Called by DataLoader: page-locked memory copies to a GPU without waiting."""
        return dataclasses.replace(self, **{n: t.pin_memory() for n, t in self._tensors()})

    def _tensors(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Tensor)]

    @property
    def inputs(self) -> Tensor:
        """(B, K, L) what the decoder reads: everything but the last word."""
        return self.captions[:, :, :-1]

    @property
    def targets(self) -> Tensor:
        """(B, K, L) what it must say: the inputs shifted by one."""
        return self.captions[:, :, 1:]


@dataclass(frozen=True)
class CaptionData:
    """Everything that a run learns from or is measured on."""

    root: Path  # the corpus folder
    store: FeatureStore
    captions: Mapping[str, Sequence[str]]
    splits: Mapping[str, Sequence[str]]  # ids with captions and features only
    vocabulary: Vocabulary

    def suited(self, config: Config) -> Config:
        """The settings with what was left open filled in for this corpus' size (`config.suited`)."""
        train = self.splits["train"]
        return suited(config, len(train), sum(len(self.captions[i]) for i in train))


def load_data(corpus: Corpus, artifacts: Path, extract: ExtractConfig) -> CaptionData:
    """The data of a corpus after notebooks 01 and 02: the features that `extract` names (`feature_folder`), splits.json
    and vocab.json of `artifacts`.

    Clips whose features are missing (their extraction failed) are left out. Raises UserError when a stage has not
    been run.
    """
    if not (artifacts / "splits.json").is_file():
        raise UserError(
            f"{artifacts / 'splits.json'}: no split yet; run notebook 02 or `python -m vcutils vocab CORPUS`"
        )
    store = FeatureStore(feature_folder(corpus, artifacts, extract))
    splits = read_splits(artifacts / "splits.json")
    splits = {name: [i for i in ids if i in store.ids and i in corpus.captions] for name, ids in splits.items()}
    if empty := [name for name, ids in splits.items() if not ids]:
        raise UserError(
            f"{store.folder}: no features for any {empty[0]} clip of {artifacts / 'splits.json'}; extract them first, "
            "or make the split of this corpus again"
        )
    return CaptionData(corpus.root, store, corpus.captions, splits, Vocabulary.load(artifacts / "vocab.json"))


class CaptionDataset(Dataset):
    """One item per clip: its features and K of its captions, drawn anew each epoch.

    The draw depends on (seed, epoch, position) alone, so that workers, processes and resumed runs agree.
    """

    def __init__(
        self,
        store: FeatureStore,
        captions: Mapping[str, Sequence[str]],
        ids: Sequence[str],
        vocabulary: Vocabulary,
        captions_per_clip: int | None,
        max_length: int = 20,
        seed: int = 0,
        shuffle_features: bool = False,
        frame_dropout: float = 0.0,
    ) -> None:
        self.ids = [i for i in ids if i in store.ids]
        if not self.ids:
            raise UserError(f"{store.folder}: none of the {len(ids)} clips has features; extract them first")
        self.store = store
        self.captions, self.vocabulary, self.max_length = captions, vocabulary, max_length
        self._encoded: dict[str, list[int]] = {}
        # None shows every caption: for measuring, where nothing may depend on a draw.
        self.captions_per_clip = captions_per_clip or max(len(captions[i]) for i in self.ids)
        self.draw = captions_per_clip is not None
        self.frame_dropout = frame_dropout
        self.seed = seed
        self.epoch = 0
        self.source = dict(zip(self.ids, self.ids, strict=True))
        if shuffle_features:
            self.source = dict(zip(self.ids, derange(self.ids, seed), strict=True))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> tuple[str, np.ndarray, list[list[int]]]:
        video_id = self.ids[position]
        captions, features = self.captions[video_id], self.store[self.source[video_id]]
        if self.draw:
            generator = np.random.default_rng((self.seed, self.epoch, position))
            order = generator.permutation(len(captions))
            captions = [captions[order[k % len(order)]] for k in range(self.captions_per_clip)]
            if self.frame_dropout:
                kept = generator.random(len(features)) >= self.frame_dropout
                features = features[kept] if kept.any() else features
        return video_id, features, [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> list[int]:
        ids = self._encoded.get(caption)
        if ids is None:
            ids = self.vocabulary.encode(caption, self.max_length)
            if len(self._encoded) < ENCODED_CAPTIONS:
                self._encoded[caption] = ids
        return ids


def derange(ids: Sequence[str], seed: int) -> list[str]:
    """The same ids in an order in which (with two or more) none keeps its place."""
    order = np.random.default_rng(seed).permutation(len(ids))
    moved = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [ids[moved[position]] for position in range(len(ids))]


def pad_frames(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Features (B, T, D) float32 padded with zeros, and their mask (B, T), of B arrays (T_b, D)."""
    lengths = [len(a) for a in arrays]
    features = torch.zeros(len(arrays), max(lengths), arrays[0].shape[1])
    for row, array in enumerate(arrays):
        features[row, : len(array)] = torch.from_numpy(np.asarray(array))
    return features, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def collate(items: Sequence[tuple[str, np.ndarray, list[list[int]]]]) -> Batch:
    """Pad B items to one batch; a clip with fewer captions than the others gets rows of padding alone."""
    ids, arrays, captions = zip(*items, strict=True)
    features, frame_mask = pad_frames(arrays)
    longest = max(len(words) for rows in captions for words in rows)
    padded = torch.full((len(ids), max(map(len, captions)), longest), PAD)
    for b, rows in enumerate(captions):
        for k, words in enumerate(rows):
            padded[b, k, : len(words)] = torch.tensor(words)
    return Batch(list(ids), features, frame_mask, padded)


def make_loader(dataset: CaptionDataset, batch_size: int, shuffle: bool = False, num_workers: int = 0) -> DataLoader:
    """Batches of clips; with shuffle in an order that depends on (seed, epoch) alone."""
    return DataLoader(
        dataset,
        batch_sampler=ClipSampler(dataset, batch_size, shuffle),
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


class ClipSampler:
    """Lists of positions, a batch each."""

    def __init__(self, dataset: CaptionDataset, batch_size: int, shuffle: bool) -> None:
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.drop_last = False  # accelerate asks for it when it shares batches out to processes

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order: Any = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng((self.dataset.seed, self.dataset.epoch)).permutation(len(self.dataset))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def clip_batches(
    store: FeatureStore, ids: Sequence[str], batch_size: int
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """(ids, features (B, T, D), frame_mask (B, T)) of clips in order, for generating captions."""
    for start in range(0, len(ids), batch_size):
        chunk = list(ids[start : start + batch_size])
        yield chunk, *pad_frames([store[i] for i in chunk])
