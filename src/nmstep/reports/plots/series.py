"""Curves over optimizer steps, averaged over the runs of a group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nmstep.reports.runs import Run

__all__ = ["Series", "mean_series"]

_MOST_POINTS = 1500


@dataclass(frozen=True)
class Series:
    """A mean with its spread over steps; the four lists have one length.

    Args:
        steps: optimizer steps taken.
        mean: the mean over runs.
        low: one standard deviation below; the mean itself for a single run.
        high: one standard deviation above.
    """

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def mean_series(
    runs: Sequence[Run], values: Callable[[Run], dict[int, float]], *, log: bool = False
) -> Series | None:
    """Returns mean and standard deviation over runs at the steps that all of them sampled.

    Long curves are thinned to about 1,500 points, the last one kept. Values that are not finite are left
    out, so a diverged run ends the curve where it diverged.

    Args:
        runs: runs of one group; those without any value are passed over.
        values: gives a run's value at each step.
        log: average logarithms (values must be positive), so that a band on a log scale is symmetric.

    Returns:
        The series, or None where no step is shared.
    """
    columns = [column for column in (_finite(values(run), positive=log) for run in runs) if column]
    if not columns:
        return None
    steps = sorted(set(columns[0]).intersection(*columns[1:]))
    if not steps:
        return None
    stride = math.ceil(len(steps) / _MOST_POINTS)
    steps = steps[(len(steps) - 1) % stride :: stride]
    mean, low, high = zip(
        *(_spread([column[step] for column in columns], log) for step in steps), strict=True
    )
    return Series(steps, list(mean), list(low), list(high))


def _finite(column: dict[int, float], *, positive: bool) -> dict[int, float]:
    return {step: v for step, v in column.items() if math.isfinite(v) and (v > 0 or not positive)}


def _spread(values: list[float], log: bool) -> tuple[float, float, float]:
    """Returns mean, mean - std and mean + std, in the values' own scale."""
    if log:
        return tuple(math.exp(v) for v in _spread([math.log(v) for v in values], log=False))  # type: ignore[return-value]
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, mean, mean
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, mean - std, mean + std
