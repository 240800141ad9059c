"""Names that people type: globs over parameters and modules, and the nearest known name to a wrong one."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

__all__ = ["as_globs", "did_you_mean", "matches", "nearest"]


def as_globs(names: Iterable[str], argument: str) -> tuple[str, ...]:
    """Returns ``names`` as a tuple.

    Raises:
        ValueError: ``names`` is a single string, which would be taken letter by letter.
    """
    if isinstance(names, str):
        raise ValueError(
            f"{argument} takes a list of names, got the string {names!r}; write {argument}=[{names!r}]"
        )
    return tuple(names)


def matches(glob: str, name: str) -> bool:
    """Whether a shell glob matches a parameter's name or the name of a module above it.

    Example:
        >>> matches("layers.*.mlp", "layers.0.mlp.weight"), matches("fc", "fc1.weight")
        (True, False)
    """
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:i]), glob) for i in range(1, len(parts) + 1))


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``" (nearest: ...)"`` with the known names that resemble ``name``, or nothing.

    Example:
        >>> nearest("fc2.wieght", ["fc1.weight", "norm"])
        " (nearest: 'fc1.weight')"
    """
    close = _close(name, known, 3, 0.4)
    return f" (nearest: {', '.join(map(repr, close))})" if close else ""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns a question after the one name that ``given`` is like, or else the list of all names.

    Example:
        >>> did_you_mean("stpes", ["steps", "seed"]), did_you_mean("x", ["steps", "seed"]), did_you_mean("x", [])
        ("did you mean 'steps'?", 'choose from steps, seed', 'there are none')
    """
    names = list(known)
    close = _close(given, names, 1, 0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}" if names else "there are none"


def _close(name: str, known: Iterable[str], most: int, cutoff: float) -> list[str]:
    import difflib  # slow to import, and needed for a message only

    return difflib.get_close_matches(name, sorted(set(known)), n=most, cutoff=cutoff)
