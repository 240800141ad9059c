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
from typing import NamedTuple

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

    _FIELDS = struct.Struct("qqqqqd")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._FIELDS.size)
        self._set(_Shown())

    def _set(self, shown: _Shown) -> None:
        self._FIELDS.pack_into(self._memory, 0, *shown)

    def _get(self) -> _Shown:
        return _Shown(*self._FIELDS.unpack_from(self._memory))

    @property
    def step(self) -> int:
        """Optimizer steps taken; −1 before the run has read its folder."""
        return self._get().step

    @property
    def first(self) -> int:
        """Optimizer steps that the folder held when the run began; −1 before it has read it."""
        return self._get().first

    @property
    def saved(self) -> int:
        """Optimizer steps of the last checkpoint that is whole; 0 before there is one."""
        return max(self._get().saved, self._get().first, 0)

    @property
    def is_sparse(self) -> bool:
        """Whether the masks have started."""
        return bool(self._get().sparse)

    @property
    def writing(self) -> Writing:
        """What is being written."""
        return Writing(self._get().writing)

    @property
    def seconds_to_save(self) -> float:
        """How long the last checkpoint took to write."""
        return self._get().seconds

    def begin(self, step: int, *, is_sparse: bool) -> None:
        """Says what the run goes on from."""
        self._set(self._get()._replace(step=step, first=step, sparse=int(is_sparse)))

    def note(self, step: int, *, is_sparse: bool) -> None:
        """Says where the run is."""
        self._set(self._get()._replace(step=step, sparse=int(is_sparse)))

    def note_saved(self) -> None:
        """Says that the checkpoint of this step is whole."""
        self._set(self._get()._replace(saved=self.step))

    @contextmanager
    def saying(self, what: Writing) -> Iterator[None]:
        """Says for the time of a block what is being written; a block inside another keeps the outer word."""
        before, started = self._get().writing, time.perf_counter()
        self._set(self._get()._replace(writing=before or what))
        try:
            yield
        finally:
            self._set(self._get()._replace(writing=before))
            if what is Writing.CHECKPOINT:
                self._set(self._get()._replace(seconds=time.perf_counter() - started))


class _Shown(NamedTuple):
    step: int = -1
    first: int = -1
    saved: int = 0
    sparse: int = 0
    writing: int = Writing.NOTHING
    seconds: float = 0.0
