"""metrics.jsonl: one JSON object a line, in step order, cut back to a checkpoint on resume."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from itertools import count, repeat
from pathlib import Path
from typing import Any

from nmstep.files import cannot_save, sha256_of

__all__ = ["MetricsLog", "read_metrics"]

_NOTHING = hashlib.sha256().hexdigest()


class MetricsLog:
    """Appends records to a file; its size is part of a checkpoint.

    A value that is not finite is written as ``NaN`` or ``Infinity``, as Python's json does.

    Args:
        path: the file.
        size: bytes to keep of it; what a killed run wrote after its checkpoint is cut off.
        sha256: of these bytes, as :attr:`sha256` was when the checkpoint was written.

    Raises:
        OSError: the file cannot be read, or not written to; the message names it.
        ValueError: the file is shorter than ``size``, or these bytes are others.
    """

    def __init__(self, path: Path, *, size: int = 0, sha256: str = _NOTHING) -> None:
        self.path = path
        self.size = size
        present = path.stat().st_size if path.exists() else 0
        if present < size:
            raise ValueError(
                f"{str(path)!r} has {present:,} bytes, but had {size:,} when the checkpoint was written: "
                f"something else changed it; restore it, or train again in another folder"
            )
        self._hash = sha256_of(path, size) if size else hashlib.sha256()
        if self._hash.hexdigest() != sha256:
            raise ValueError(
                f"the first {size:,} bytes of {str(path)!r} are not those that were there when the checkpoint was "
                f"written: they are damaged, or something else changed them; restore the file, or train again in "
                f"another folder"
            )
        try:
            self._file = path.open("ab")
            self._file.truncate(size)
        except OSError as error:
            raise cannot_save(error, path) from error

    @property
    def sha256(self) -> str:
        """The SHA-256 of all that was written, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends one line for each record, and sees them on the disk.

        Raises:
            OSError: the disk is full; the message names the file.
        """
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_save(error, self.path) from error
        self.size += len(data)
        self._hash.update(data)

    def close(self) -> None:
        """Closes the file; what was written is on the disk already."""
        with contextlib.suppress(OSError):  # the rest of a write that failed and was reported
            self._file.close()


def read_metrics(path: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the records of one kind, in order.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line of it is damaged; the message says which.
    """
    with path.open("rb") as file:
        return [record for record in map(_record, repeat(path), count(1), file) if record["kind"] == kind]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
        record["kind"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"line {number} of {str(path)!r} is damaged: {error!r}") from error
    return record
