"""What the exercises of notebook 1 must compute, on made data."""

from collections.abc import Callable

import torch

from vcutils.course.exercises import Differs, call, same
from vcutils.video import frame_indices


def expect_frame_indices(function: Callable) -> None:
    """1.1: the middle frame of each of k parts."""
    for n, k in ((79, 40), (10, 4), (16, 16), (300, 7), (5, 8)):
        got = call(function, n, k)
        expected = frame_indices(n, k)
        if (n, k) == (79, 40) and isinstance(got, list) and got and got[-1] < 70:
            raise Differs(f"frame_indices(79, 40) ends at {got[-1]}: the end of the clip is never seen.")
        if k > n and isinstance(got, list) and len(got) > n:
            raise Differs(f"frame_indices({n}, {k}) has {len(got)} entries, but the clip has only {n} frames.")
        same(f"frame_indices({n}, {k})", got, expected)


def expect_cosine(function: Callable) -> None:
    """1.2: the cosine of every pair of rows."""
    X = torch.randn(5, 8)
    norms = X.norm(dim=1)
    got = call(function, X)
    same("cosine(X)", got, (X @ X.T) / torch.outer(norms, norms), 1e-5)
    got = call(function, torch.stack([X[0], 10 * X[0]]))
    same("cosine of a row and ten times the same row", got, torch.ones(2, 2), 1e-5)
    got = call(function, torch.stack([torch.zeros(8), X[0]]))
    same("cosine of a row of zeros and another row", got, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), 1e-5)


def expect_find_cuts(function: Callable) -> None:
    """1.3: the n places where neighbouring frames are least similar."""
    scenes = torch.tensor([[1.0, 0.1, 0.0], [0.3, 1.0, 0.0], [0.0, 0.2, 1.0]])
    X = scenes.repeat_interleave(torch.tensor([3, 4, 2]), dim=0) + 0.01 * torch.randn(9, 3)
    X[7:] *= 50  # a brighter scene points the same way
    for n, expected in ((2, [3, 7]), (1, [7]), (0, [])):
        got = call(function, X, n)
        if n and isinstance(got, list) and sorted(got) == [t - 1 for t in expected]:
            raise Differs(f"find_cuts(X, {n}) names the last frame of a scene; the first of the next one is asked for.")
        if isinstance(got, list) and got != sorted(got):
            raise Differs(f"find_cuts(X, {n}) is {got}, which is not in the order of time.")
        same(f"find_cuts(X, {n})", got, expected)
