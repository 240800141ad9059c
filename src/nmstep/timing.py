"""Programs timed in turn, so that what the machine does meanwhile falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Step", "Timing", "in_turn", "in_turns", "spread"]

Step = Callable[[], object]
_SHORT = 2e-3  # seconds; a shorter call is timed in a block
_BLOCK = 100  # calls, as many as lie between two samples of every layer that a sparsifier records by default


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The ratio of two programs.

    Args:
        ratio: ours ÷ theirs, the median over rounds.
        low: the lowest ratio but one.
        high: the highest ratio but one.
        ms: milliseconds of one call of ours, the median.
        other_ms: of theirs.
    """

    ratio: float
    low: float
    high: float
    ms: float
    other_ms: float

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Timing:
        """Returns what rounds came to, each of our seconds and theirs.

        Example:
            >>> Timing.of([(3.0, 1.0), (4.0, 2.0), (9.0, 3.0)])
            Timing(ratio=3.0, low=3.0, high=3.0, ms=4000.0, other_ms=2000.0)
        """
        ratio, low, high = spread([ours / theirs for ours, theirs in rows])
        ours_ms, theirs_ms = (1000 * statistics.median(row[place] for row in rows) for place in (0, 1))
        return cls(ratio=ratio, low=low, high=high, ms=ours_ms, other_ms=theirs_ms)


def in_turn(
    ours: Step,
    theirs: Step,
    *,
    rounds: int = 15,
    calls: int | None = None,
    block: int = _BLOCK,
    device: torch.device | str = "cpu",
) -> Timing:
    """Returns the ratio of two programs that take turns, each beginning every other round.

    Args:
        ours: called twice before anything is timed, and so is ``theirs``.
        theirs: the opponent.
        rounds: that they take turns, at least 3.
        calls: in each round; by default one, or a block of a call that takes less than 2 ms.
        block: calls of a short program.
        device: a GPU's queue is waited for before the clock is read.
    """
    where = torch.device(device)
    programs = []
    for step in (ours, theirs):
        usual = _calls_of(_warm(step, where), block)
        programs.append((step, calls or usual))
    return Timing.of(_rounds(programs, rounds, where))


def in_turns(
    ours: Sequence[Step], theirs: Step, *, rounds: int = 15, seconds: float = 10.0, block: int = _BLOCK
) -> list[Timing]:
    """Returns the ratio of each of several programs to one, measured together on the CPU.

    Args:
        ours: called twice before anything is timed, and so is ``theirs``.
        theirs: the opponent of all of them.
        rounds: that they take turns, at least 3.
        seconds: that the rounds take at most; three take place in any case.
        block: calls in a round of a program that takes less than 2 ms, fewer where time is short.
    """
    where = torch.device("cpu")
    steps = [*ours, theirs]
    took = [_warm(step, where) for step in steps]
    share = seconds / (3 * len(steps))
    counts = [max(1, min(_calls_of(time, block), int(share / time))) for time in took]
    once = sum(count * time for count, time in zip(counts, took, strict=True))
    rows = _rounds(list(zip(steps, counts, strict=True)), max(3, min(rounds, int(seconds / once))), where)
    return [Timing.of([(row[place], row[-1]) for row in rows]) for place in range(len(ours))]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median of some values, and their range without the two extremes.

    Example:
        >>> spread([3.0, 1.0, 9.0, 2.0, 4.0])
        (3.0, 2.0, 4.0)
    """
    ordered = sorted(values)
    inner = ordered[1:-1] or ordered
    return statistics.median(ordered), inner[0], inner[-1]


def _warm(step: Step, device: torch.device) -> float:
    """Calls a program twice, and returns the seconds that the second call took."""
    step()
    return max(_seconds(step, 1, device), 1e-9)


def _calls_of(seconds: float, block: int) -> int:
    """Returns how often to call a program in a round, by the time that one call takes."""
    return block if seconds < _SHORT else 1


def _rounds(
    programs: Sequence[tuple[Step, int]], rounds: int, device: torch.device
) -> list[tuple[float, ...]]:
    """Returns the seconds of a call of each program in each round, begun by one program after another."""
    rows = []
    for turn in range(rounds):
        first = turn % len(programs)
        times = [0.0] * len(programs)
        for place in [*range(first, len(programs)), *range(first)]:
            step, calls = programs[place]
            times[place] = _seconds(step, calls, device)
        rows.append(tuple(times))
    return rows


def _seconds(step: Step, calls: int, device: torch.device) -> float:
    """Returns the seconds that one of several calls takes."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        step()
    _wait(device)
    return (time.perf_counter() - started) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
