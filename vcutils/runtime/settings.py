"""What settings are made of: numbers with limits, checked when a settings object is made; values read from text."""

import dataclasses
import math
import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal


class UserError(ValueError):
    """Bad input or settings: one message for the user that names the file or id and says what to do."""


# Numbers with their limits, both included.
Count = Annotated[int, (1, math.inf)]
Size = Annotated[int, (1, 65536)]
Whole = Annotated[int, (0, math.inf)]
Amount = Annotated[float, (0, math.inf)]
Share = Annotated[float, (0, 1)]
Beam = Annotated[int, (1, 1000)]
_IN_WORDS = {bool: "True or False", str: "text", type(None): "None"}


class Checked:
    """Base of a settings dataclass: every field is checked when an object is made."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of another type or outside its limits."""
        for name, options in _fields(type(self)).items():
            value = getattr(self, name)
            reasons = [_objection(value, option) for option in options]
            if all(reasons):
                raise UserError(f"{name}={value!r}: must be {', or '.join(reasons)}")


def from_dict(cls: Any, values: Any) -> Any:
    """Rebuild a settings dataclass from JSON. Raises UserError for unknown fields: nothing is half understood."""
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{error}; was it written by a newer version?") from error


def filled(settings: Any, **values: Any) -> Any:
    """The settings with these values where they are None."""
    return dataclasses.replace(settings, **{n: value for n, value in values.items() if getattr(settings, n) is None})


def paths_from_env(names: tuple[str, ...], root: Path) -> dict[str, Path]:
    """The folders that VCUTILS_DATA and VCUTILS_CORPUS name, relative ones below `root`; a corpus must exist."""
    texts = {name: os.environ.get(f"VCUTILS_{name.upper()}") for name in names}
    paths = {name: (root / Path(text).expanduser()).resolve() for name, text in texts.items() if text}
    if not paths.get("corpus", root).is_dir():
        raise UserError(f"VCUTILS_CORPUS: no folder {paths['corpus']}; relative paths count from {root}")
    return paths


def changed(config: Any, changes: str, presets: dict[str, dict[str, Any]]) -> Any:
    """The settings with changes, as in "train.epochs=10 train=original" (a preset). Raises UserError for wrong ones."""
    for change in changes.replace(",", " ").split():
        name, _, text = change.partition("=")
        section, _, key = name.partition(".")
        part: Any = getattr(config, section, None)
        if not key and text in presets.get(section, {}):
            part = presets[section][text]
        elif not isinstance(part, Checked) or key not in _fields(type(part)):
            raise UserError(f"VCUTILS_SET: no setting {name!r}; write section.field=value, such as train.epochs=10")
        else:
            try:
                part = dataclasses.replace(part, **{key: _parsed(text, _fields(type(part))[key])})  # type: ignore
            except ValueError as error:
                raise UserError(f"VCUTILS_SET: {change}: {error}") from error
        config = dataclasses.replace(config, **{section: part})
    return config


def _fields(cls: Any) -> dict[str, tuple[Any, ...]]:
    """The types, with their limits, that each field of a settings dataclass may have: `int | None` are two."""
    hints, unions = typing.get_type_hints(cls, include_extras=True), (typing.Union, types.UnionType)
    return {n: typing.get_args(h) if typing.get_origin(h) in unions else (h,) for n, h in hints.items()}


def _objection(value: Any, option: Any) -> str:
    """What a value must be, and is not, to be of a type; empty when it fits."""
    if typing.get_origin(option) is Annotated:
        kind, (low, high) = typing.get_args(option)
        is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        limits = f"{low} or more" if high == math.inf else f"from {low} to {high}"
        words = "a whole number" if kind is int else "a number"
        return "" if is_number and low <= value <= high and value < math.inf else f"{words}, {limits}"
    if typing.get_origin(option) is Literal:
        choices = typing.get_args(option)
        return "" if value in choices else f"one of {', '.join(choices)}"
    # Any other type is a path, or settings that were checked when they were made.
    return "" if option not in _IN_WORDS or type(value) is option else _IN_WORDS[option]


def _parsed(text: str, options: tuple[Any, ...]) -> Any:
    """A value of a field's types from text. Raises ValueError."""
    kind = getattr(options[0], "__origin__", options[0])  # int of Annotated[int, …]
    if text.lower() == "none" and type(None) in options:
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    return kind(text) if kind in (int, float) else text
