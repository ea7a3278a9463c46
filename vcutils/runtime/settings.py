"""What settings are made of: numbers with limits, checked when a settings object is made; values read from text."""

import dataclasses
import json
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal


class UserError(ValueError):
    """Bad input or settings: one message for the user that names the file or id and says what to do."""


@dataclass(frozen=True)
class Between:
    """Limits of a number, both included."""

    low: float
    high: float = float("inf")

    def __str__(self) -> str:
        return f"{self.low:g} or more" if self.high == float("inf") else f"from {self.low:g} to {self.high:g}"


Count = Annotated[int, Between(1)]
Size = Annotated[int, Between(1, 65536)]
Whole = Annotated[int, Between(0)]
Amount = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
Beam = Annotated[int, Between(1, 1000)]
_IN_WORDS = {int: "a whole number", bool: "True or False", str: "text", type(None): "None"}


class Checked:
    """Base of a settings dataclass: every field is checked when an object is made."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of another type or outside its limits."""
        for name, hint in _fields(type(self)).items():
            value = getattr(self, name)
            reasons = [_objection(value, option) for option in _options(hint)]
            if all(reasons):
                raise UserError(f"{name}={value!r}: must be {', or '.join(reasons)}")


def to_json(config: Any) -> str:
    """A (nested) settings dataclass as JSON text, paths as strings."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str)


def from_dict(cls: Any, values: Any) -> Any:
    """Rebuild a settings dataclass from JSON. Raises UserError for anything but its fields, so that a file of a newer
    version is not half understood.
    """
    if not isinstance(values, dict):
        raise UserError(f"{cls.__name__}: must be an object of settings, is {type(values).__name__}")
    if unknown := sorted(set(values) - set(_fields(cls))):
        raise UserError(f"{cls.__name__}: unknown field(s) {', '.join(unknown)}; was it written by a newer version?")
    return cls(**values)


def paths_from_env(names: tuple[str, ...], root: Path) -> dict[str, Path]:
    """The folders that VCUTILS_DATA and VCUTILS_CORPUS name, relative ones below `root`; a corpus must exist."""
    paths = {}
    for name in names:
        if text := os.environ.get(f"VCUTILS_{name.upper()}"):
            paths[name] = (root / Path(text).expanduser()).resolve()
            if name == "corpus" and not paths[name].is_dir():
                raise UserError(f"VCUTILS_CORPUS: no folder {paths[name]}; relative paths count from {root}")
    return paths


def changed(config: Any, changes: str, presets: dict[str, dict[str, Any]]) -> Any:
    """The settings with `changes` such as "train.epochs=10 decode.beam_size=1"; "train=original" takes a preset.

    Raises UserError for a field that does not exist or a value that does not fit it.
    """
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


def _fields(cls: Any) -> dict[str, Any]:
    """Type hints of a settings dataclass by field, with their limits."""
    return typing.get_type_hints(cls, include_extras=True)


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have: `int | None` has two."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _objection(value: Any, option: Any) -> str:
    """What a value must be, and is not, to be of a type; empty when it fits."""
    if typing.get_origin(option) is Annotated:
        plain, limits = typing.get_args(option)
        return _objection(value, plain) or ("" if limits.low <= value <= limits.high else str(limits))
    if typing.get_origin(option) is Literal:
        choices = typing.get_args(option)
        return "" if value in choices else f"one of {', '.join(choices)}"
    if option is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        return "" if is_number else "a number"
    # Any other type is a path, or settings that were checked when they were made.
    return "" if option not in _IN_WORDS or type(value) is option else _IN_WORDS[option]


def _parsed(text: str, hint: Any) -> Any:
    """A value of a field's type from text. Raises ValueError."""
    options = _options(hint)
    kind = getattr(options[0], "__origin__", options[0])  # int of Annotated[int, …]
    word = text.lower()
    if word == "none" and type(None) in options:
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(word, text)
    return kind(text) if kind in (int, float) else text
