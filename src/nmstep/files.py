"""Files that are either whole or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["read_json", "remove_leftovers", "replacing", "write_atomically", "write_json"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a ``with`` block a file to write, which takes the place of another once it is whole.

    A reader, or a run resumed after a power cut, sees the old one or the new one.

    Args:
        path: in a folder that exists.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the message names the path, what was
            there before is untouched, and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives, which not every writer does
        yield temporary
        temporary.chmod(mode)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_save(error, path) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file of this whole content, as :func:`replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON values atomically, as :func:`write_atomically` does."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else; the message names it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} is damaged: expected a JSON object, found {type(values).__name__}")
    return values


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files that a killed process left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def cannot_save(error: OSError, path: Path) -> OSError:
    """Returns an error of the same number that says what could not be saved and what to do."""
    return OSError(
        error.errno,
        f"cannot save: {error.strerror or error}; what was saved before is intact, so make room and resume",
        str(path),
    )


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
