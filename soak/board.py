"""A few numbers that a training process shares with the one that watches it.

They lie in memory of both, so reading them costs the watched process nothing, and they stay when it is killed.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

__all__ = ["Board", "Writing"]


class Writing(IntEnum):
    """What a run is writing."""

    NOTHING = 0
    HEAD = 1
    METRICS = 2
    CHECKPOINT = 3
    POINTER = 4
    WEIGHTS = 5
    RESULT = 6


class Board:
    """Where a run is: made before the fork, written after it by the child."""

    _FIELDS = struct.Struct("qqqd")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._FIELDS.size)
        self._set(-1, 0, Writing.NOTHING, 0.0)

    def _set(self, step: int, sparse: int, writing: int, seconds: float) -> None:
        self._FIELDS.pack_into(self._memory, 0, step, sparse, writing, seconds)

    def _get(self) -> tuple[int, int, int, float]:
        step, sparse, writing, seconds = self._FIELDS.unpack_from(self._memory)
        return step, sparse, writing, seconds

    @property
    def step(self) -> int:
        """Optimizer steps taken; −1 before the run has opened its folder."""
        return self._get()[0]

    @property
    def is_sparse(self) -> bool:
        """Whether the masks have started."""
        return bool(self._get()[1])

    @property
    def writing(self) -> Writing:
        """What is being written."""
        return Writing(self._get()[2])

    @property
    def seconds_to_save(self) -> float:
        """How long the last checkpoint took to write."""
        return self._get()[3]

    def note(self, step: int, *, is_sparse: bool) -> None:
        """Says where the run is."""
        _, _, writing, seconds = self._get()
        self._set(step, int(is_sparse), writing, seconds)

    @contextmanager
    def saying(self, what: Writing) -> Iterator[None]:
        """Says for the time of a block what is being written; a block inside another keeps the outer word."""
        step, sparse, before, seconds = self._get()
        started = time.perf_counter()
        self._set(step, sparse, before or what, seconds)
        try:
            yield
        finally:
            if what is Writing.CHECKPOINT:
                seconds = time.perf_counter() - started
            self._set(step, sparse, before, seconds)
