"""Configurations as plain dictionaries and back, strictly: what is stored with a run rebuilds that run.

Configurations are frozen dataclasses of bool, int, float, str, Literal, tuples, other such dataclasses, or one of these
and None. Dictionaries hold what JSON holds. On the way back, unknown keys, missing keys and wrong types are errors that
name the key's path, such as `network.height`.
"""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from dgnet_platform.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

Config = TypeVar("Config")
_NEEDED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "an integer",
    "string_type": "a text",
    "tuple_type": "a list",
    "literal_error": "one of {expected}",
    "dataclass_type": "a section with the fields of {class_name}",
}
"""What a key holds, by pydantic's name of the error."""


class ConfigError(UserError):
    """A dictionary that is no configuration; the message names the key and what it could hold."""


def to_dict(config: object) -> dict[str, Any]:
    """A configuration as a dictionary that JSON can hold; tuples become lists.

    Raises:
        TypeError: a field holds something else.
    """
    assert is_dataclass(config)
    return {field.name: _plain(getattr(config, field.name), field.name) for field in fields(config)}


def _plain(value: object, name: str) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} holds a {type(value).__name__}: a configuration holds plain values and tuples")


def from_dict(cls: type[Config], values: object) -> Config:
    """The configuration that `to_dict` was given.

    Args:
        cls: its class, with its argument if it is generic, such as Experiment[DGNetConfig].
        values: a mapping of its fields; those with a default may be missing.

    Raises:
        ConfigError: an unknown key, a missing one without default, a wrong type, or a value it refuses.
    """
    from pydantic import ValidationError  # after --help, which needs no settings

    text = json.dumps(values, default=str)  # only in JSON does pydantic take a list for a tuple, and no "1" for 1
    try:
        return _adapter(cls).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        # A misspelt key is often the reason why another one is missing.
        first = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
        raise ConfigError(_message(cls, first)) from first.get("ctx", {}).get("error")


@cache
def _adapter(cls: type[Config]) -> "TypeAdapter[Config]":
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _message(cls: type, error: "ErrorDetails") -> str:
    """What is wrong, in words that name the key's path."""
    location, context = error["loc"], error.get("ctx", {})
    path = _path(location)
    match error["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key {path!r}: {_advice(_section(cls, location[:-1]), str(location[-1]), location[:-1])}"
        case "missing":
            return f"{path!r} is missing and has no default"
        case "value_error":
            return f"{path}: {context['error']}" if path else str(context["error"])
        case kind if kind in _NEEDED:
            needed = _NEEDED[kind].format_map(context)
            return f"{path or cls.__name__} is {error['input']!r}: {needed} is needed"
    return f"{path or cls.__name__} is {error['input']!r}: {error['msg']}"


def _section(cls: Any, location: tuple[int | str, ...]) -> Any:
    """The configuration class at a path; Optional and tuples are looked into."""
    for key in location:
        if isinstance(key, str):
            kind = _hints(cls)[key]
            cls = next(option for option in (kind, *get_args(kind)) if is_dataclass(option))
    return cls


def _advice(cls: type, key: str, above: tuple[int | str, ...]) -> str:
    """Which key was meant: one of the section that is spelt alike, or one of that name further down."""
    siblings = list(_hints(cls))
    close = get_close_matches(key, siblings, n=1) or [name for name in _paths(cls) if name.split(".")[-1] == key]
    if close:
        return f"did you mean {_path((*above, close[0]))!r}?"
    return f"{_path(above) or cls.__name__} has {', '.join(siblings)}"


def _paths(cls: type) -> Iterator[str]:
    """Paths of all fields of a configuration class."""
    for name, kind in _hints(cls).items():
        yield name
        if is_dataclass(kind):
            yield from (f"{name}.{below}" for below in _paths(kind))  # pyright: ignore[reportArgumentType]


def _hints(cls: Any) -> dict[str, Any]:
    """Types of a configuration class's fields by name; those of a generic one are its arguments."""
    generic = get_origin(cls) or cls
    given = dict(zip(getattr(generic, "__parameters__", ()), get_args(cls), strict=False))
    hints = get_type_hints(generic)
    return {field.name: given.get(hints[field.name], hints[field.name]) for field in fields(generic)}


def _path(location: tuple[int | str, ...]) -> str:
    """Such as `network.appearance_layers[2]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location).removeprefix(".")


def differences(before: Any, after: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two trees of plain values differ: both values by dotted path."""
    if isinstance(before, dict) and isinstance(after, dict):
        changed: dict[str, tuple[Any, Any]] = {}
        for key in [*before, *(key for key in after if key not in before)]:
            below = f"{path}.{key}" if path else key
            changed |= differences(before.get(key), after.get(key), below)
        return changed
    return {} if before == after else {path: (before, after)}


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A tree of plain values by dotted path, for MLflow's parameters."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        below = f"{path}.{key}" if path else key
        found |= flat(value, below) if isinstance(value, dict) else {below: value}
    return found
