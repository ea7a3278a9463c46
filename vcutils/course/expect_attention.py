"""What the exercises of notebook 5 must compute, on made attention."""

from collections.abc import Callable

import numpy as np

from vcutils.attention.measures import ground
from vcutils.course.exercises import Differs, call, same, unpack
from vcutils.course.expect_captions import made_events
from vcutils.decode import Hypothesis

WORDS = "a cat grows then an elephant and a rocket fades".split()


def made_weights(words: int = len(WORDS), frames: int = 9, seed: int = 0) -> np.ndarray:
    """Attention rows (L, T) that sum to 1."""
    weights = np.random.default_rng(seed).random((words, frames)) ** 4
    return weights / weights.sum(axis=1, keepdims=True)


def expect_pointing(function: Callable) -> None:
    """5.1: (word, hit, mass, chance) of every word with a known time."""
    events = made_events(("cat", ["grows"]), ("elephant", ["spins"]), ("rocket", ["fades"]))
    events["events"].append({"kind": "order", "words": ["then"], "start": 2.0, "end": 6.0})
    events["events"].append({"kind": "thing", "words": ["cat"], "start": 4.0, "end": 6.0})  # it comes back
    times, weights = [0.0, 0.5, 1.0, 2.0, 2.5, 3.5, 4.0, 5.0, 5.5], made_weights()
    hypothesis = Hypothesis(WORDS, 0.0, 0.0, np.zeros(len(WORDS)), weights, None)
    expected = [g[1:2] + g[3:] for g in ground({"a": hypothesis}, {"a": times}, {"a": events})]
    got = call(function, WORDS, weights, times, events["events"])
    names = [row[0] if isinstance(row, tuple | list) and row else row for row in got] if isinstance(got, list) else got
    same("the words", names, [row[0] for row in expected])
    for row, right in zip(got, expected, strict=True):
        parts = unpack(f"the row of {row[0]!r}", row, ("word", "hit", "mass", "chance"))
        same(f"hit of {row[0]!r}", bool(parts["hit"]), right[1])
        same(f"mass of {row[0]!r}", parts["mass"], right[2])
        same(f"chance of {row[0]!r}", parts["chance"], right[3])


def expect_deletion(function: Callable) -> None:
    """5.2: what a word loses without its strongest frames, and without random ones."""
    rng = np.random.default_rng(0)
    features, row = rng.standard_normal((9, 4)), made_weights(1)[0]
    direction = rng.standard_normal((4, 5))

    def log_probs(frames: np.ndarray) -> np.ndarray:
        """Stands in for the model: (L,) of features (T, D)."""
        return -np.abs(np.asarray(frames).mean(axis=0) @ direction) * len(frames)

    for n, position in ((2, 3), (4, 0)):
        draws = [rng.choice(9, n, replace=False) for _ in range(5)]
        full = log_probs(features)[position]

        def cost(hide: np.ndarray, full: float = full, position: int = position) -> float:
            return float(full - log_probs(np.delete(features, hide, axis=0))[position])

        attended, random = cost(np.argsort(-row)[:n]), float(np.mean([cost(hide) for hide in draws]))
        got = call(function, log_probs, features, row, position, draws)
        parts = unpack("deletion", got, ("attended", "random"))
        if abs(_float(parts["attended"]) + attended) < 1e-6:
            raise Differs("The sign is turned around: a word that becomes less probable has a cost above 0.")
        if abs(_float(parts["attended"]) - cost(np.argsort(row)[:n])) < 1e-6:
            raise Differs("These are the frames with the smallest weights; the strongest are asked for.")
        same(f"attended, with {n} frames hidden", parts["attended"], attended)
        same(f"random, with {n} frames hidden", parts["random"], random)


def expect_hide_strongest(function: Callable) -> None:
    """5.3: a clip without the fewest frames that carry a share of the mean attention."""
    features = np.arange(36.0).reshape(9, 4)
    cases = [(made_weights(seed=seed), share) for seed, share in ((0, 0.5), (1, 0.25), (2, 1.0))]
    for attention, share in cases:
        mean = attention.mean(axis=0)
        order = np.argsort(-mean)
        hide = order[: min(int((mean[order].cumsum() < share - 1e-9).sum()) + 1, len(order) - 1)]
        expected, got = np.delete(features, hide, axis=0), call(function, features, attention, share)
        what = f"the clip without {share:.0%} of its attention"
        if isinstance(got, np.ndarray) and got.shape[1:] == expected.shape[1:] and len(got) != len(expected):
            raise Differs(f"{what} must keep {len(expected)} of 9 frames, yours keeps {len(got)}.")
        same(what, got, expected)


def expect_article_correlation(function: Callable) -> None:
    """5.4: the row of each a or an against the row of the next word."""
    weights = made_weights()
    pairs = [(t, t + 1) for t, word in enumerate(WORDS[:-1]) if word in ("a", "an")]
    expected = [float(np.corrcoef(weights[t], weights[s])[0, 1]) for t, s in pairs]
    same("article_correlation(words, weights)", call(function, WORDS, weights), expected)
    got = call(function, ["there", "is", "a"], made_weights(3))
    same("article_correlation of a caption that ends in an article", got, [])


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
