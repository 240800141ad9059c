"""Two programs timed in turn, so that what the machine does meanwhile falls on both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Step", "Timing", "in_turn", "spread"]

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
        usual = _calls_of(step, block, where)
        programs.append((step, calls or usual))
    rows = []
    for turn in range(rounds):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        times = {place: _seconds(*programs[place], where) for place in order}
        rows.append((times[0], times[1]))
    ratio, low, high = spread([a / b for a, b in rows])
    return Timing(
        ratio=ratio,
        low=low,
        high=high,
        ms=1000 * statistics.median(a for a, _ in rows),
        other_ms=1000 * statistics.median(b for _, b in rows),
    )


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median of some values, and their range without the two extremes.

    Example:
        >>> spread([3.0, 1.0, 9.0, 2.0, 4.0])
        (3.0, 2.0, 4.0)
    """
    ordered = sorted(values)
    inner = ordered[1:-1] or ordered
    return statistics.median(ordered), inner[0], inner[-1]


def _calls_of(step: Step, block: int, device: torch.device) -> int:
    """Calls a program twice, and returns how often to call it in a round."""
    step()
    return block if _seconds(step, 1, device) < _SHORT else 1


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
