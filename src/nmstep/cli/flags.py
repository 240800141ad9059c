"""How values are written on the command line: ``none`` for a default, ``yes`` and ``no``, ``key=value``."""

from __future__ import annotations

import contextlib
import types
import typing
from typing import Any, Literal, Union

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

__all__ = ["REGISTRY"]

REGISTRY = ConstructorRegistry()
"""What tyro needs to read the configurations' optional values and tables."""

_METAVARS = {int: "INT", float: "FLOAT", bool: "yes|no", str: "TEXT"}


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Reads ``X | None``, with one name for None and no ``{None}|`` in every line of the help."""
    arguments = typing.get_args(info.type)
    if typing.get_origin(info.type) not in (Union, types.UnionType) or type(None) not in arguments:
        return None
    kinds = [argument for argument in arguments if argument is not type(None)]
    return PrimitiveConstructorSpec(
        nargs=_nargs(kinds),
        metavar="|".join(map(_metavar, kinds)),
        instance_from_str=lambda texts: _read(texts, kinds),
        is_instance=lambda value: value is None or not isinstance(value, dict),
        str_from_instance=_write,
    )


@REGISTRY.primitive_rule
def _numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Reads numbers, as many as there are, with a message that says which one is none."""
    arguments = typing.get_args(info.type)
    if typing.get_origin(info.type) is not tuple or arguments not in ((int, ...), (float, ...)):
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{_metavar(arguments[0])} ...",
        instance_from_str=lambda texts: tuple(_number(text, arguments[0]) for text in texts),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=_write,
    )


@REGISTRY.primitive_rule
def _table(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Reads a table as ``key=value`` pairs."""
    if typing.get_origin(info.type) is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE ...",
        instance_from_str=lambda texts: dict(map(_pair, texts)),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [f"{key}={value}" for key, value in table.items()],
    )


def _nargs(kinds: list[Any]) -> int | tuple[int, ...] | Literal["*"]:
    tuples = [typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is tuple]
    if any(Ellipsis in items for items in tuples):
        return "*"
    return (*sorted({1, *map(len, tuples)}),) if tuples else 1


def _metavar(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple and Ellipsis in arguments:
        return f"{_metavar(arguments[0])} ..."
    if origin is tuple:
        return " ".join(map(_metavar, arguments))
    return _METAVARS.get(kind, getattr(kind, "__name__", "VALUE").upper())


def _read(texts: list[str], kinds: list[Any]) -> Any:
    if texts in (["none"], ["None"]):
        return None
    for kind in kinds:
        with contextlib.suppress(ValueError):
            if typing.get_origin(kind) is tuple:
                numbers = typing.get_args(kind)
                if Ellipsis in numbers and texts:
                    numbers = (numbers[0],) * len(texts)
                return tuple(number(text) for number, text in zip(numbers, texts, strict=True))
            if len(texts) == 1:
                return _read_one(texts[0], kind)
    expected = " or ".join(_metavar(kind) for kind in kinds)
    raise ValueError(f"got {' '.join(texts)!r}, expected {expected}, or none for the default")


def _read_one(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        if text in typing.get_args(kind):
            return text
        raise ValueError
    if kind is bool:
        return _truth(text)
    return kind(text)


def _number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        raise ValueError(f"got {text!r}, expected {expected}") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false"):
        raise ValueError
    return text.lower() in ("yes", "true")


def _pair(text: str) -> tuple[str, int | float | bool | str | None]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"got {text!r}, expected KEY=VALUE, as in layers=4")
    if value.lower() == "none":
        return key, None
    for kind in (int, float, _truth):
        with contextlib.suppress(ValueError):
            return key, kind(value)
    return key, value


def _write(value: Any) -> list[str]:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return ["none" if value is None else str(value)]
