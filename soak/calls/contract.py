"""What a call may do: return, or raise an exception that its docstring names, with a message."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Refusal", "WrongError", "call", "documented", "expect"]


class WrongError(AssertionError):
    """A call did something that it may not do."""


@dataclass(frozen=True)
class Answer:
    """What a call returned."""

    value: Any


@dataclass(frozen=True)
class Refusal:
    """What a call raised, which its docstring names."""

    error: Exception


def documented(function: Callable[..., Any]) -> frozenset[str]:
    """Returns the names of the exceptions under ``Raises`` in a function's or class's docstring.

    Example:
        >>> from nmstep import NMPattern
        >>> sorted(documented(NMPattern))
        ['TypeError', 'ValueError']
    """
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Raises:\n((?:[ ]{4}.*\n|\n)+)", text + "\n", re.MULTILINE)
    return frozenset(re.findall(r"^ {4}(\w+):", section[1], re.MULTILINE)) if section else frozenset()


def call(function: Callable[..., Any], *arguments: Any, like: Any = None, **named: Any) -> Answer | Refusal:
    """Calls a function and returns what came of it; what it warns of is nobody's concern here.

    Args:
        function: what is called.
        arguments: for it.
        like: whose docstring names the exceptions, where ``function`` itself has none; several in a tuple.
        named: for it.

    Raises:
        WrongError: it raised something that the docstring does not name, or without a message.
    """
    sources = like if isinstance(like, tuple) else (function if like is None else like,)
    allowed = frozenset[str]().union(*map(documented, sources))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Answer(function(*arguments, **named))
    except Exception as error:
        if not allowed & {kind.__name__ for kind in type(error).__mro__}:
            raise WrongError(f"raised {error!r}, which is not documented: {sorted(allowed)}") from error
        if not str(error).strip():
            raise WrongError(f"raised a {type(error).__name__} without a message") from error
        return Refusal(error)


def expect(outcome: Answer | Refusal, expected: Any, same: Callable[[Any, Any], bool]) -> None:
    """Compares an outcome with an oracle's: None for a refusal, anything else for an answer.

    Raises:
        WrongError: they differ.
    """
    if isinstance(outcome, Refusal):
        if expected is not None:
            raise WrongError(f"refused, and should not have: {outcome.error!r}")
    elif expected is None:
        raise WrongError(f"answered {outcome.value!r}, and should have refused")
    elif not same(outcome.value, expected):
        raise WrongError(f"answered {outcome.value!r}, the oracle says {expected!r}")
