"""What the exercises of notebook 4 must compute, on small models and made captions."""

from collections.abc import Callable

import numpy as np
import torch

from vcutils.course.exercises import Differs, call, same, unpack
from vcutils.course.expect_model import DIM, small_model
from vcutils.decode import beam_search, greedy_search
from vcutils.scores.coco import References
from vcutils.scores.naming import naming
from vcutils.vocab import END, START

LENGTH = 8


def _clips() -> list[tuple]:
    """Pairs of a small model and a clip (T, D): some of their captions end, others are cut."""
    rng = np.random.default_rng(0)
    sizes = ((seed, 2 + (3 * seed) % 5) for seed in range(8))
    return [
        (small_model(seed, 4.0), torch.from_numpy(rng.standard_normal((T, DIM)).astype("float32"))) for seed, T in sizes
    ]


def _ids(what: str, got: object) -> list[int]:
    if not isinstance(got, list | tuple) or not all(isinstance(i, int | np.integer) for i in got):
        raise Differs(f"{what} must be a list of whole numbers, the words' indices; yours is {str(got)[:60]}.")
    for name, index in (("<start>", START), ("<end>", END)):
        if index in got:
            raise Differs(f"{what} holds {name}, which is no word of the caption.")
    return [int(i) for i in got]


@torch.no_grad()
def expect_greedy(function: Callable) -> None:
    """4.1: the likeliest word each time."""
    for number, (model, features) in enumerate(_clips()):
        what = f"the caption of clip {number}"
        got = _ids(what, call(function, model, features, LENGTH))
        if len(got) > LENGTH:
            raise Differs(f"{what} has {len(got)} words, max_length is {LENGTH}.")
        same(what, got, greedy_search(model, features, LENGTH))


@torch.no_grad()
def expect_beam(function: Callable) -> None:
    """4.2: the best caption of those whose beginnings were kept."""
    for k in (1, 3):
        for number, (model, features) in enumerate(_clips()):
            what = f"the caption of clip {number} with k = {k}"
            got = _ids(what, call(function, model, features, k, LENGTH))
            same(what, got, beam_search(model, features, k, LENGTH))


def expect_bleu(function: Callable) -> None:
    """4.3: BLEU-4 of a corpus."""
    words = str.split
    corpora = {
        "two right captions": ({"a": "a cat sits on a mat"}, {"a": ["a cat sits on a mat", "the cat sits there now"]}),
        "captions with a word repeated": (
            {"a": "the the the the cat sat down", "b": "a dog runs over the grass"},
            {"a": ["the cat sat down over there today", "a cat sat down"], "b": ["a dog runs over green grass"]},
        ),
        "a caption with a thing named twice": (
            {"a": "a cat and a cat sits down"},
            {"a": ["a cat sits down there", "now a cat sits down"]},
        ),
        "short captions": (
            {"a": "a cat sits on", "b": "a dog runs over the grass"},
            {
                "a": ["a cat sits on the mat", "a cat sits on the mat and sleeps"],
                "b": ["a dog runs over the grass today"],
            },
        ),
        "two references equally close in length": (
            {"a": "a cat sits on a mat", "b": "a man cooks some rice"},
            {"a": ["a cat sits on a big red mat", "a cat sits down"], "b": ["a man cooks some rice now"]},
        ),
    }
    for name, (captions, references) in corpora.items():
        expected = References(references).score(captions, ("Bleu",))["Bleu_4"] or 0.0
        got = call(
            function,
            {i: words(caption) for i, caption in captions.items()},
            {i: [words(reference) for reference in group] for i, group in references.items()},
        )
        same(f"BLEU-4 of {name}", got, float(expected), 5e-5)


def expect_content_accuracy(function: Callable) -> None:
    """4.4: shares of things named, and of changes named behind their thing."""
    events = {
        "a": made_events(("cat", ["grows"]), ("rocket", ["fades", "darker"])),
        "b": made_events(("moon", ["spins"]), ("cat", ["fades", "darker"]), ("coffee", ["grows"])),
    }
    cases = {
        "two right captions": {
            "a": "a cat grows, then a rocket fades",
            "b": "the moon spins a cat gets darker coffee grows",
        },
        "a caption with its changes exchanged": {"a": "a cat fades, then a rocket grows"},
        "a caption that names a thing twice": {"a": "a rocket and a cat grows, then the rocket fades"},
        "a caption that leaves a thing out": {"b": "the moon spins, coffee grows"},
        "a caption without changes": {"b": "a cat, coffee, and the moon"},
    }
    for name, captions in cases.items():
        parts = unpack("content_accuracy", call(function, captions, events), ("things", "changes"))
        right = naming(captions, events)
        for kind in ("things", "changes"):
            same(f"{kind} of {name}", parts[kind], float(right[kind] or 0.0))


def made_events(*scenes: tuple[str, list[str]]) -> dict:
    """events.json's entry of a clip whose scenes of two seconds show a thing under a change each."""
    rows = []
    for n, (thing, change) in enumerate(scenes):
        for kind, words in (("thing", [thing]), ("change", change)):
            rows.append({"kind": kind, "words": words, "start": 2.0 * n, "end": 2.0 * n + 2})
    return {"duration": 2.0 * len(scenes), "events": rows}
