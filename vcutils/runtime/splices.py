"""Splices: clips joined end to end, so that of every caption it is known which frames it is about.

They give attention a ground truth on any corpus (`attention.checks`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def splice(batch: Any, pad: int) -> tuple[Any, Tensor, Tensor]:
    """Join each two neighbours of a batch (B clips, in random order), three where B is odd: S longer clips.

    Returns the batch with features (S, T, D) and captions (S, K, L+1), each row's clip among the B (S, K), negative for
    rows of padding, and which frames are that clip's own (S, K, T).
    """
    count, lengths = batch.captions.shape[1], batch.frame_mask.sum(dim=1)
    groups = torch.arange(len(lengths), device=lengths.device).tensor_split(max(1, len(lengths) // 2))
    features = pad_sequence([batch.features[g][batch.frame_mask[g]] for g in groups], batch_first=True)
    captions = pad_sequence([batch.captions[g].flatten(0, 1) for g in groups], batch_first=True, padding_value=pad)
    frames = pad_sequence([g.repeat_interleave(lengths[g]) for g in groups], batch_first=True, padding_value=-1)
    clips = pad_sequence([g.repeat_interleave(count) for g in groups], batch_first=True, padding_value=-2)
    joined = batch._replace(features=features, frame_mask=frames >= 0, captions=captions, lengths=None)
    return joined, clips, clips[:, :, None] == frames[:, None]
