"""Curves over optimizer steps, averaged over the runs of a group, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmstep.reports.plots.style import Look
from nmstep.reports.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Series", "draw_line", "mean_series"]

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


def draw_line(
    axes: Axes, series: Series, look: Look, label: str, first: int = 0, *, thin: bool = False
) -> None:
    """Draws a mean with its band.

    Args:
        axes: to draw on.
        series: what to draw.
        look: how.
        label: for the legend.
        first: index up to which the line is thin and dotted, since training was still dense.
        thin: draw all of it thin and without markers, for values that jump from step to step.
    """
    if first:
        axes.plot(
            series.steps[: first + 1],
            series.mean[: first + 1],
            color=look.color,
            linewidth=1.2,
            linestyle=":",
            label=f"{label} while dense, with its mask",
        )
    axes.plot(
        series.steps[first:],
        series.mean[first:],
        color=look.color,
        linewidth=1.0 if thin else 1.9,
        linestyle="-" if thin else look.line,
        label=label,
        marker=None if thin else look.marker or None,
        markersize=4.5,
        markevery=max(1, (len(series.steps) - first) // 8),
    )
    axes.fill_between(series.steps, series.low, series.high, color=look.color, alpha=0.16, linewidth=0)
