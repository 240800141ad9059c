"""Files that are either whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = [
    "BROKEN_PICKLE",
    "new_folder",
    "read_json",
    "remove_leftovers",
    "replacing",
    "settle",
    "sha256_of",
    "write_atomically",
    "write_json",
]

#: What a reader of pickles that runs none of them may raise on a file that is damaged, or meant to do harm.
BROKEN_PICKLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)

_BLOCK = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a ``with`` block a file to write, which takes the place of another once it is whole.

    A reader, or a run resumed after a power cut, sees the old one or the new one.

    Args:
        path: in a folder that exists.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the folder cannot be written to, or the disk is full; the message names the path, what was
            there before is untouched, and no temporary file stays.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    temporary = _temporary(path)  # of this writer alone: another may be at the same path
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives, which not every writer does
        yield temporary
        temporary.chmod(mode)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _discard(temporary)
        raise cannot_save(error, path) from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # on a read-only disk; the error that led here says more
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a ``with`` block a folder to write files into, which are put at ``path`` once all of them are whole.

    Args:
        path: of a folder that is empty or does not exist; those above it are made.

    Raises:
        FileExistsError: something is there already; it is left as it is.
        OSError: the folder cannot be made, or the disk is full; nothing stays of it.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "a folder that is not empty" if path.is_dir() else "a file"
        raise FileExistsError(f"{str(path)!r} is {what}: name a new folder, or remove what is there")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        settle(temporary)
        if path.exists():  # it may be somebody's working folder, so it is filled, not replaced
            if any(path.iterdir()):
                raise FileExistsError(f"{str(path)!r} was filled meanwhile; it is left as it is")
            for file in sorted(temporary.iterdir()):
                file.replace(path / file.name)
            temporary.rmdir()
        else:
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def settle(folder: Path) -> None:
    """Gives files the mode that the user's umask gives, which not every writer does, and puts them on the disk."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: not a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} is damaged: expected a JSON object, found {type(values).__name__}")
    return values


def sha256_of(path: Path, size: int | None = None) -> hashlib._Hash:
    """Returns the SHA-256 of a file, or of its first ``size`` bytes; more can be added to it.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
    return digest


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files that a killed process left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def cannot_save(error: OSError, path: Path) -> OSError:
    """Returns an error of the same number that says what could not be saved and what to do."""
    refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    way_out = "allow writing there" if refused else "make room"
    return OSError(
        error.errno,
        f"cannot save: {error.strerror or error}; what was saved before is intact, so {way_out} and resume",
        str(path),
    )


def _temporary(path: Path) -> Path:
    """Returns a name beside ``path`` that no other process or thread takes; leftovers are told by it."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
