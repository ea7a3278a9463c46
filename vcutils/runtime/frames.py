"""How long a padded batch's clips are, which frames the encoder reads and in which order: what the ablations change."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vcutils.config import ModelConfig

LONGEST = 4096  # frames for which one fixed order is drawn


class Lengths(NamedTuple):
    """What a batch's masks say, where reading it makes nobody wait for a GPU."""

    frames: np.ndarray  # (B,) of each clip
    words: np.ndarray  # (B, K) of each caption, <end> included; 0 for a row of padding


def lengths_of(frame_mask: Tensor, words: Tensor, pad: int) -> Lengths:
    """The lengths of clips by their mask (B, T), and of captions by their words (B, K, L)."""
    return Lengths(*(there.sum(dim=-1).cpu().numpy() for there in (frame_mask, words != pad)))


def sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device; the CPU goes on before a GPU has it."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def lstm_of(lstm: nn.LSTM, frames: Tensor, lengths: Tensor) -> Tensor:
    """What an LSTM makes of frames (B, T, C) of clips with lengths (B,) on the CPU; no padding reaches it.

    As pack_padded_sequence and pad_packed_sequence do, which wait for a GPU to bring the clips into order and back.
    """
    by_length = lengths.argsort(descending=True, stable=True)  # the longest first
    there, back = (sent(order.numpy(), frames.device) for order in (by_length, by_length.argsort()))
    packed = pack_padded_sequence(frames.index_select(0, there), lengths[by_length], batch_first=True)
    values, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=frames.shape[1])
    return values.index_select(0, back)


def check_frames(features: Tensor, frame_mask: Tensor, feature_dim: int, lengths: Tensor | None) -> None:
    """Raise ValueError unless features are (B, T, D), the mask (B, T), and it is True on each clip's first frames.

    Where the clips' lengths (B,) are known, the mask was made of them, and nobody waits for its numbers.
    """
    if features.ndim != 3 or features.shape[2] != feature_dim:
        raise ValueError(f"features must be (B, T, {feature_dim}), are {tuple(features.shape)}")
    if frame_mask.shape != features.shape[:2]:
        raise ValueError(f"frame_mask must be {tuple(features.shape[:2])}, is {tuple(frame_mask.shape)}")
    if lengths is None and not bool(frame_mask[:, 0].all() & (frame_mask[:, 1:] <= frame_mask[:, :-1]).all()):
        raise ValueError("frame_mask must be True on a clip's first frames, at least one, and False behind them")


def encode_some(
    encoder: nn.Module, features: Tensor, frame_mask: Tensor, config: ModelConfig, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Values (B, T, C) at the frames' true places, and mask (B, T); of all frames, `max_frames`, or shuffled ones."""
    if config.max_frames is None and config.frame_order == "kept":
        return encoder(features, frame_mask, lengths), frame_mask
    valid = frame_mask if config.max_frames is None else middle_frames(frame_mask, config.max_frames)
    lengths = lengths if lengths is None else lengths.clamp(max=config.max_frames or len(frame_mask[0]))
    order = reading_order(valid, config.frame_order == "shuffled", encoder.training)
    values = encoder(reorder(features, order), reorder(valid, order), lengths)
    return reorder(values, order.argsort(dim=1)), valid


def middle_frames(mask: Tensor, count: int) -> Tensor:
    """The mask (B, T) with only the middle frame of each of `count` equal parts of a clip, as sampling picks them."""
    lengths, count = mask.sum(dim=1, keepdim=True), min(count, mask.shape[1])
    parts = lengths.clamp(max=count)  # (B, 1)
    part = torch.arange(count, device=mask.device)
    middle = (2 * part + 1) * lengths // (2 * parts)  # (B, count)
    middle = torch.where(part < parts, middle, middle[:, :1])
    return torch.zeros_like(mask).scatter(1, middle, True)


def reading_order(valid: Tensor, shuffled: bool, training: bool) -> Tensor:
    """Positions (B, T) in which the encoder reads: the valid frames first, in time, or shuffled (in training anew)."""
    count = valid.shape[1]
    keys = torch.arange(count, device=valid.device).expand(valid.shape).float()
    if shuffled and training:
        keys = torch.rand(valid.shape, device=valid.device)
    elif shuffled:
        fixed = torch.rand(max(LONGEST, count), generator=torch.Generator().manual_seed(0))
        keys = fixed[:count].to(valid.device).expand(valid.shape)
    return keys.masked_fill(~valid, torch.inf).argsort(dim=1, stable=True)


def reorder(frames: Tensor, order: Tensor) -> Tensor:
    """Frames (B, T, …) in the order of positions (B, T)."""
    return frames.take_along_dim(order.view(*order.shape, *[1] * (frames.ndim - 2)), dim=1)
