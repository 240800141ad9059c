"""Typed configurations from files: every key known, every value of the annotated type."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tomllib
import types
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from nmstep.names import did_you_mean

__all__ = ["check_types", "from_dict", "read_file", "to_dict"]

Config = TypeVar("Config")

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}


class _MismatchError(Exception):
    """A value is not of the annotated type."""


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the table that a ``.toml`` or ``.json`` file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it ends otherwise, or is not valid TOML or JSON, or holds no table.
    """
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"cannot read a configuration from {str(path)!r}: expected a .toml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # TOMLDecodeError, JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{str(path)!r} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} holds {type(values).__name__}, expected a table of keys and values")
    return values


def from_dict(config_type: type[Config], values: Mapping[str, Any], *, source: str = "") -> Config:
    """Returns the configuration that ``values`` spells.

    Args:
        config_type: a dataclass that calls :func:`check_types` in ``__post_init__``.
        values: a value for each key; keys left out take their defaults.
        source: the file they come from, for error messages.

    Raises:
        ValueError: a key is unknown, a value has the wrong type, or the configuration rejects it.
    """
    hints = _hints(cast(Hashable, config_type))
    where = f"{source}: " if source else ""
    for key in values:
        if key not in hints:
            raise ValueError(f"{where}unknown key {key!r}; {_nearest_key(key, hints)}")
    arguments = {}
    for key, value in values.items():
        table = _table(hints[key])
        nested = table is not None and isinstance(value, Mapping)
        arguments[key] = from_dict(cast(type, table), value, source=f"{where}[{key}]") if nested else value
    try:
        return config_type(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as JSON values, such that :func:`from_dict` gives it back.

    Nested tables hold only what differs from their defaults.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            defaults = {f.name: f.default for f in dataclasses.fields(value)}
            value = {k: v for k, v in to_dict(value).items() if v != defaults[k]}
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def check_types(config: Any) -> None:
    """Checks every field of a dataclass against its annotation, from ``__post_init__``.

    Lists become tuples and integers become floats where the annotation says so, so that a configuration
    equals the one read back from its file.

    Raises:
        ValueError: a value has another type.
    """
    for name, hint in _hints(cast(Hashable, type(config))).items():
        value = getattr(config, name)
        try:
            object.__setattr__(config, name, _convert(value, hint))
        except _MismatchError:
            raise ValueError(f"{name}={value!r}: expected {_describe(hint)}") from None


@functools.cache
def _hints(config_type: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def _nearest_key(key: str, hints: Mapping[str, Any]) -> str:
    for name, hint in hints.items():
        table = _table(hint)
        if table is not None and key in _hints(table):
            return f"it belongs in the table [{name}]"
    return did_you_mean(key, hints)


def _table(hint: Any) -> type | None:
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _convert(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _MismatchError
        return value
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if origin is dict:
        if not isinstance(value, dict):
            raise _MismatchError
        return {_convert(k, arguments[0]): _convert(v, arguments[1]) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _MismatchError
    return value


def _convert_union(value: Any, arguments: tuple[Any, ...]) -> Any:
    if type(value) in arguments:  # an int stays one where both int and float are allowed
        return value
    for argument in arguments:
        try:
            return _convert(value, argument)
        except _MismatchError:
            continue
    raise _MismatchError


def _convert_tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _MismatchError
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise _MismatchError
    return tuple(_convert(v, a) for v, a in zip(value, arguments, strict=True))


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments if a is not type(None))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_describe(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_describe(arguments[1])}"
    return _NAMES.get(hint, "a table")
