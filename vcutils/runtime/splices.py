"""Splices: clips joined end to end, so that of every caption it is known which frames it is about.

They give attention a ground truth on any corpus, to measure it (`attention.checks`) and to train it (`splice_loss`).
"""

from typing import Any

import torch
from torch import Tensor, nn
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
    joined = batch._replace(features=features, frame_mask=frames >= 0, captions=captions)
    return joined, clips, clips[:, :, None] == frames[:, None]


def splice_loss(network: nn.Module, batch: Any, pad: int) -> Tensor:
    """Mean of −log(attention inside the own clip) over the words of a batch's splices; `network` as in `fast_loss`."""
    joined, _, own = splice(batch, pad)
    real = joined.targets != pad
    _, weights = network(joined.features, joined.frame_mask, joined.inputs.masked_fill(~real, pad))
    inside = (weights * own[:, :, None]).sum(dim=-1)  # (S, K, L)
    return -inside[real].float().clamp(min=1e-6).log().mean()
