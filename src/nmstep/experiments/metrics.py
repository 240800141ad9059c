"""metrics.jsonl: one JSON object a line, in step order, cut back to a checkpoint on resume."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nmstep.files import cannot_save

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Appends records to a file; its size is part of a checkpoint.

    A value that is not finite is written as ``NaN`` or ``Infinity``, as Python's json does.

    Args:
        path: the file.
        size: bytes to keep of it; what a killed run wrote after its checkpoint is cut off.

    Raises:
        ValueError: the file is shorter than ``size``.
    """

    def __init__(self, path: Path, *, size: int) -> None:
        self.path = path
        self.size = size
        present = path.stat().st_size if path.exists() else 0
        if present < size:
            raise ValueError(
                f"{str(path)!r} has {present:,} bytes, but had {size:,} when the checkpoint was written: "
                f"something else changed it; restore it, or train again in another folder"
            )
        self._file = path.open("ab")
        self._file.truncate(size)

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

    def close(self) -> None:
        """Closes the file; what was written is on the disk already."""
        with contextlib.suppress(OSError):  # the rest of a write that failed and was reported
            self._file.close()


def read_metrics(path: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the records of one kind, in order."""
    with path.open(encoding="utf-8") as file:
        records = (json.loads(line) for line in file)
        return [record for record in records if record["kind"] == kind]
