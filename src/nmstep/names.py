"""Names that people type: globs over parameters and modules, and the nearest known name to a wrong one."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

__all__ = ["as_globs", "matches", "nearest"]


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
    import difflib  # slow to import, and needed for a message only

    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.4)
    return f" (nearest: {', '.join(map(repr, close))})" if close else ""
