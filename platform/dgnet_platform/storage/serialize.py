"""Configurations as plain dictionaries and back, strictly: what is stored with a run rebuilds that run.

Configurations are frozen dataclasses of bool, int, float, str, Literal, Optional, tuples and other such
dataclasses. Dictionaries hold what JSON holds. The way back is a door: unknown keys, missing keys and wrong
types are errors that name the key's path, such as `network.height`.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


class ConfigError(ValueError):
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


def from_dict(cls: type[Config], values: object, path: str = "") -> Config:
    """The configuration that `to_dict` was given.

    Args:
        cls: its class.
        values: a mapping of its fields; those with a default may be missing.
        path: where `values` stands in a larger configuration, for messages.

    Raises:
        ConfigError: an unknown key, a missing one without default, a wrong type, or a value it refuses.
    """
    assert is_dataclass(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path or cls.__name__} is {values!r}: a section with the fields of {cls.__name__} is needed"
        )
    known = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {_join(path, key)!r}: {_advice(cls, str(key), path)}")
    for name, field in known.items():
        if name not in values and not _has_default(field):
            raise ConfigError(f"{_join(path, name)!r} is missing and has no default")
    hints = get_type_hints(cls)
    parsed = {name: _parse(hints[name], value, _join(path, name)) for name, value in values.items()}
    try:
        return cls(**parsed)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _parse(kind: Any, value: Any, path: str) -> Any:
    """`value` as the type `kind`, or a ConfigError that names `path`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return from_dict(kind, value, path)  # pyright: ignore[reportArgumentType]
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        options = [argument for argument in arguments if argument is not types.NoneType]
        if len(options) == 1:
            return _parse(options[0], value, path)
        for option in options:
            try:
                return _parse(option, value, path)
            except ConfigError:
                continue
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(value) == len(arguments):
            items = zip(arguments, value, strict=True)
            return tuple(_parse(argument, item, f"{path}[{i}]") for i, (argument, item) in enumerate(items))
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"{path} is {value!r}: {_name(kind)} is needed")


def _name(kind: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_name, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each entry {_name(arguments[0])}"
        return f"a list of {len(arguments)} ({', '.join(map(_name, arguments))})"
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a text",
        types.NoneType: "null",
    }
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _advice(cls: type, key: str, path: str) -> str:
    """Which key was meant: one of the section that is spelt alike, or one of that name further down."""
    siblings = [field.name for field in fields(cls)]
    close = get_close_matches(key, siblings, n=1) or [name for name in _paths(cls) if name.split(".")[-1] == key]
    if close:
        return f"did you mean {_join(path, close[0])!r}?"
    return f"{path or cls.__name__} has {', '.join(siblings)}"


def _paths(cls: type) -> Iterator[str]:
    """Paths of all fields of a configuration class."""
    for name, kind in get_type_hints(cls).items():
        yield name
        if is_dataclass(kind):
            yield from (f"{name}.{below}" for below in _paths(kind))  # pyright: ignore[reportArgumentType]


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


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
