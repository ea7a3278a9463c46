"""What the exercises of notebook 2 must compute, on made data."""

from collections.abc import Callable

import numpy as np
import torch

from vcutils.course.exercises import Differs, call, same, unpack
from vcutils.dataset import Batch, collate
from vcutils.vocab import END, PAD, SPECIALS, START, build_vocabulary

CAPTIONS = ["A cat sits.", "A cat runs, a dog runs.", "The dog doesn't sit.", "A bird sings.", "A Cat and the dog"]


def expect_build_vocabulary(function: Callable) -> None:
    """2.1: special words, then words that are frequent enough, the most frequent first, equals by the alphabet."""
    for min_count in (2, 1, 4):
        got, what = call(function, CAPTIONS, min_count), f"build_vocabulary(captions, {min_count})"
        expected = list(build_vocabulary({"all": CAPTIONS}, ["all"], min_count).words)
        if isinstance(got, list | tuple):
            if list(got[:4]) != list(SPECIALS):
                raise Differs(f"{what} must begin with {', '.join(SPECIALS)}; yours begins with {got[:4]}.")
            if any(isinstance(word, str) and word != word.lower() for word in got):
                raise Differs(f"{what} holds words in capitals: use `tokenize`, which writes them small.")
            if len(got) == len(expected) and set(got) == set(expected) and list(got) != expected:
                place = next(n for n, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b)
                raise Differs(f"{what} has the right words in another order; the first out of place is [{place}].")
            if len(got) != len(expected):
                raise Differs(f"{what} has {len(got)} words, expected {len(expected)}.")
        same(what, got, expected)


def made_clips(lengths: tuple[int, ...], captions: tuple[int, ...], dim: int = 6) -> list:
    """Clips (id, features (T, dim), captions as ids) of so many frames, with so many captions each."""
    rng = np.random.default_rng(0)
    return [
        (
            f"clip{b}",
            rng.standard_normal((T, dim)).astype(np.float16),
            [[START, *rng.integers(4, 12, 2 + (b + k) % 4).tolist(), END] for k in range(K)],
        )
        for b, (T, K) in enumerate(zip(lengths, captions, strict=True))
    ]


def expect_collate(function: Callable) -> None:
    """2.2: features, mask and captions of a batch, padded."""
    for lengths, captions in (((16, 12, 7), (2, 2, 2)), ((3,), (1,)), ((2, 5), (1, 3))):
        clips = made_clips(lengths, captions)
        expected = collate(clips)
        names = ("features", "frame_mask", "captions")
        parts = unpack("collate", call(function, clips), names)
        for name in names:
            about = f"{name} of clips with {', '.join(map(str, lengths))} frames"
            same(about, parts[name], getattr(expected, name))
        if torch.as_tensor(parts["frame_mask"]).dtype != torch.bool:
            raise Differs("frame_mask holds the right values, but must be of type torch.bool.")


def expect_inputs_targets(function: Callable) -> None:
    """2.3: what is read, and what must be said: shifted by one."""
    ids = torch.tensor([[[START, 7, 5, 6, END], [START, 8, END, PAD, PAD]]])  # (1, 2, 5)
    batch = Batch(["clip"], torch.empty(0), torch.empty(0), ids)
    parts = unpack("inputs_targets", call(function, ids), ("inputs", "targets"))
    if torch.equal(torch.as_tensor(parts["inputs"]), torch.as_tensor(parts["targets"])):
        raise Differs("inputs and targets are the same: a model would learn to repeat the word that it has just read.")
    same("inputs", parts["inputs"], batch.inputs)
    same("targets", parts["targets"], batch.targets)
