"""The exercises: which there are, and `check`, which tells a student what is right and what differs first."""

import copy
import linecache
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from traceback import walk_tb
from typing import Any

import numpy as np
import torch

TOPICS = {  # first digit of an exercise's number: its notebook, and the module here with what is expected
    "1": ("01_extract", "expect_frames"),
    "2": ("02_vocab", "expect_batches"),
    "3": ("03_train", "expect_model"),
    "4": ("04_evaluate", "expect_captions"),
    "5": ("05_attention", "expect_attention"),
}


@dataclass(frozen=True)
class Exercise:
    """One exercise: the function that a student writes, and the minutes that a student is expected to need."""

    number: str
    function: str
    minutes: int

    @property
    def notebook(self) -> str:
        """Stem of its notebook."""
        return TOPICS[self.number[0]][0]


EXERCISES = {
    number: Exercise(number, function, minutes)
    for number, function, minutes in (
        ("1.1", "frame_indices", 10),
        ("1.2", "cosine", 10),
        ("1.3", "find_cuts", 15),
        ("2.1", "build_vocabulary", 15),
        ("2.2", "collate", 25),
        ("2.3", "inputs_targets", 5),
        ("3.1", "additive_attention", 25),
        ("3.2", "decoder_step", 15),
        ("3.3", "teacher_forced", 25),
        ("3.4", "train", 25),
        ("3.5", "ablation", 20),
        ("4.1", "greedy", 15),
        ("4.2", "beam", 50),
        ("4.3", "bleu", 35),
        ("4.4", "content_accuracy", 40),
        ("5.1", "pointing", 25),
        ("5.2", "deletion", 15),
        ("5.3", "hide_strongest", 25),
        ("5.4", "article_correlation", 20),
    )
}


class Differs(Exception):
    """What a student's function does otherwise than it should, as one sentence for the student."""


class Blank(Exception):
    """Nothing is written yet."""


_right: set[str] = set()


def check(number: str, function: Callable) -> None:
    """Print whether an exercise's function is right, or the first place where it differs; never the answer."""
    if number not in EXERCISES:
        print(f"There is no exercise {number!r}. There are {', '.join(EXERCISES)}.")
        return
    state, message = verdict(number, function)
    _right.discard(number)
    if state == "right":
        _right.add(number)
    begin = {"right": "right. Well done!", "blank": "nothing is written yet.", "wrong": "not yet."}[state]
    print(f"{number} {EXERCISES[number].function}: {begin} {message}".rstrip())


def is_right(number: str) -> bool:
    """Whether the last check of this exercise found the function right."""
    return number in _right


def verdict(number: str, function: Callable) -> tuple[str, str]:
    """("right", ""), ("blank", …) or ("wrong", what differs first) for an exercise's function."""
    name = EXERCISES[number].function
    if not callable(function):
        return "wrong", f"`{name}` is not a function but {kind_of(function)}."
    expect = getattr(import_module(f"vcutils.course.{TOPICS[number[0]][1]}"), f"expect_{name}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expect(function)
    except Blank:
        return "blank", "Write your lines in place of `raise NotImplementedError`, and run the cell again."
    except Differs as difference:
        return "wrong", str(difference)
    return "right", ""


def call(function: Callable, *arguments: Any, keep: bool = False) -> Any:
    """What a student's function returns for a copy of the arguments (`keep`: for the arguments themselves).

    Raises Blank for a stub, Differs for an error in it, and for one that returns nothing.
    """
    try:
        result = function(*(arguments if keep else copy.deepcopy(arguments)))
    except NotImplementedError:
        raise Blank from None
    except (KeyboardInterrupt, Differs):
        raise
    except BaseException as error:  # also SystemExit: a student's function must not end the notebook
        raise Differs(f"It stopped with {describe(error, function)}.") from None
    if result is None:
        raise Differs("It returns nothing. Is `return` missing?")
    return result


def describe(error: BaseException, function: Callable) -> str:
    """An error and the line of the student's code that it happened in."""
    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}" if str(error).strip() else ""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    for frame, number in reversed(list(walk_tb(error.__traceback__))):
        if frame.f_code.co_filename == file:
            line = linecache.getline(str(file), number).strip()
            return f"{text or type(error).__name__}, in line {number} of your cell" + f": `{line}`" * bool(line)
    return text or type(error).__name__


def kind_of(value: Any) -> str:
    """A value's type, with its shape where it has one."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def same(what: str, got: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Raise Differs, naming `what` and the first place, unless both are equal; the expected value is not told."""
    if isinstance(expected, np.ndarray | torch.Tensor):
        _same_arrays(what, got, np.asarray(expected), tolerance)
    elif isinstance(expected, list | tuple):
        if isinstance(got, np.ndarray | torch.Tensor):
            got = got.tolist()
        if not isinstance(got, Sequence) or isinstance(got, str):
            raise Differs(f"{what} must be a {type(expected).__name__}, yours is {kind_of(got)}.")
        for n, (mine, theirs) in enumerate(zip(got, expected, strict=False)):
            same(f"{what}, entry [{n}]", mine, theirs, tolerance)
        if len(got) != len(expected):
            raise Differs(f"{what} has {len(got)} entries, expected {len(expected)}.")
    elif isinstance(expected, float):
        value = _number(what, got)
        if not math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance):
            raise Differs(f"{what}: {value:.6g} is {_size(value, expected)}.")
    elif got != expected:
        raise Differs(f"{what}: {got!r} is not right.")


def unpack(what: str, got: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """The parts of a returned tuple by name. Raises Differs for another number of parts."""
    if not isinstance(got, tuple | list) or len(got) != len(names):
        size = f"{len(got)} values" if isinstance(got, tuple | list) else kind_of(got)
        raise Differs(f"{what} must return {len(names)} values, {', '.join(names)}; yours returns {size}.")
    return dict(zip(names, got, strict=True))


def _number(what: str, got: Any) -> float:
    try:
        return float(got)
    except (TypeError, ValueError, RuntimeError):
        raise Differs(f"{what} must be one number, yours is {kind_of(got)}.") from None


def _same_arrays(what: str, got: Any, expected: np.ndarray, tolerance: float) -> None:
    if isinstance(got, torch.Tensor):
        got = got.detach().cpu()
    try:
        mine = np.asarray(got)
    except (TypeError, ValueError):
        mine = np.empty(0, dtype=object)
    if mine.shape != expected.shape or mine.dtype.kind not in "biuf":
        raise Differs(f"{what} must have the shape {expected.shape}, yours is {kind_of(got)}.")
    close = np.isclose(mine.astype(float), expected.astype(float), rtol=tolerance, atol=tolerance)
    if not close.all():
        where = tuple(np.argwhere(~close)[0].tolist())
        size = "not right" if expected.dtype.kind in "bi" else _size(float(mine[where]), float(expected[where]))
        place = f"the first place that differs is {list(where)}, where {mine[where]:.6g} is {size}"
        raise Differs(f"{what}: the shape is right; {place} ({int((~close).sum())} of {close.size} entries differ).")


def _size(value: float, expected: float) -> str:
    return "not a number" if math.isnan(value) else "too large" if value > expected else "too small"
