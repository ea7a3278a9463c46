"""What settings are made of: numbers with limits, checked when a settings object is made; values read from text."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
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
Whole = Annotated[int, Between(0)]
Amount = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
Beam = Annotated[int, Between(1, 1000)]


class Checked:
    """Base of a settings dataclass: every field is checked when an object is made."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of another type or outside its limits."""
        for name, kind in _fields(type(self)).items():
            reason = _objection(getattr(self, name), kind)
            if reason:
                raise UserError(f"{name}={getattr(self, name)!r}: must be {reason}")


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


def changed(config: Any, changes: str, presets: dict[str, dict[str, Any]]) -> Any:
    """The settings with `changes` such as "train.epochs=10 decode.beam_size=1"; "train=original" takes a preset.

    Raises UserError for a field that does not exist or a value that does not fit it.
    """
    for change in changes.replace(",", " ").split():
        name, _, text = change.partition("=")
        section, _, key = name.partition(".")
        part = getattr(config, section, None)
        if not key and text in presets.get(section, {}):
            part = presets[section][text]
        elif not dataclasses.is_dataclass(part) or key not in _fields(type(part)):
            raise UserError(f"VCUTILS_SET: no setting {name!r}; write section.field=value, such as train.epochs=10")
        else:
            try:
                part = dataclasses.replace(part, **{key: _parsed(text, _fields(type(part))[key])})  # type: ignore
            except ValueError as error:
                raise UserError(f"VCUTILS_SET: {change}: {error}") from error
        config = dataclasses.replace(config, **{section: part})
    return config


def _fields(cls: type) -> dict[str, Any]:
    return {
        name: kind
        for name, kind in typing.get_type_hints(cls, include_extras=True).items()
        if name in {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    }


def _options(kind: Any) -> tuple[Any, ...]:
    """The types that a field may have: `int | None` has two."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _plain(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _objection(value: Any, kind: Any) -> str:
    """What a value of a field must be and is not; empty when it fits."""
    reasons = []
    for option in _options(kind):
        plain = _plain(option)
        if typing.get_origin(plain) is Literal:
            choices = typing.get_args(plain)
            reason = "" if value in choices else f"one of {', '.join(choices)}"
        elif plain is float:
            number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
            reason = "" if number else "a number"
        elif plain in (int, bool, str):
            reason = "" if type(value) is plain else {int: "a whole number", bool: "True or False", str: "text"}[plain]
        elif plain is type(None):
            reason = "" if value is None else "None"
        else:  # a path, or settings that were checked when they were made
            reason = ""
        if not reason and plain is not option:
            limits = typing.get_args(option)[1]
            reason = "" if limits.low <= value <= limits.high else str(limits)
        if not reason:
            return ""
        reasons.append(reason)
    return ", or ".join(reasons)


def _parsed(text: str, kind: Any) -> Any:
    """A value of a field's type from text. Raises ValueError."""
    plain = [_plain(option) for option in _options(kind)]
    if text.lower() == "none" and type(None) in plain:
        return None
    if plain[0] is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    return plain[0](text) if plain[0] in (int, float) else text
