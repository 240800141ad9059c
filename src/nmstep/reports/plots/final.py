"""The final metric by pattern and recipe, with every run as a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmstep.reports.groups import Group, group_runs
from nmstep.reports.plots.scales import metric_label, scale_metric
from nmstep.reports.plots.style import INK, grid, legend_below, look_of
from nmstep.reports.runs import Run
from nmstep.reports.summary import summary_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_final_metric"]


def plot_final_metric(runs: Sequence[Run]) -> Figure | None:
    """Returns the final metric by pattern and recipe: mean, ± one standard deviation, each run, dense line.

    Args:
        runs: from :func:`~nmstep.reports.load_runs`.

    Returns:
        The figure, one panel a task, or None where no run with a pattern has finished.
    """
    groups = [group for group in group_runs(runs) if group.finished]
    tasks = list(dict.fromkeys(g.task for g in groups if g.pattern is not None))
    if not tasks:
        return None
    figure, panels = grid(tasks, height=3.6, columns=2)
    for axes, task in zip(panels, tasks, strict=True):
        _draw_task(axes, [g for g in groups if g.task == task])
    legend_below(figure, panels)
    return figure


def _draw_task(axes: Axes, groups: list[Group]) -> None:
    patterns = list(dict.fromkeys(g.pattern for g in groups if g.pattern is not None))
    labels = list(dict.fromkeys(g.label for g in groups if g.pattern is not None))
    width = min(0.2, 0.75 / len(labels))
    shown: list[float] = []
    for group in groups:
        row = summary_table(group.finished)[0]
        values = [value for value in row["values"] if math.isfinite(value)]
        shown += values
        if row["std"] and math.isfinite(row["std"]):
            shown += [row["mean"] - row["std"], min(row["mean"] + row["std"], max(100.0, *values))]
        if not values:
            continue
        if group.pattern is None:
            _draw_dense(axes, group, row["mean"], row["std"])
        else:
            offset = (labels.index(group.label) - (len(labels) - 1) / 2) * width
            place = patterns.index(group.pattern) + offset
            _draw_group(axes, group, groups, place, values, row["mean"], row["std"])
    axes.set_xlim(-0.5, len(patterns) - 0.5)
    axes.set_xticks(range(len(patterns)), patterns)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("pattern (kept : of)", fontsize=10)
    metric = groups[0].finished[0].metric
    axes.set_ylabel(f"final {metric_label(metric)}", fontsize=10)
    axes.margins(y=0.12)
    scale_metric(axes, metric, shown)


def _draw_dense(axes: Axes, group: Group, mean: float, std: float | None) -> None:
    axes.axhline(mean, color=INK, linestyle=(0, (5, 2)), linewidth=1.5, label=group.label, zorder=1.5)
    if std:
        axes.axhspan(mean - std, mean + std, color=INK, alpha=0.08, linewidth=0)


def _draw_group(
    axes: Axes,
    group: Group,
    groups: list[Group],
    place: float,
    values: list[float],
    mean: float,
    std: float | None,
) -> None:
    look = look_of(group, groups)
    axes.errorbar(
        [place],
        [mean],
        yerr=[std or 0.0],
        color=look.color,
        marker=look.marker,
        markersize=8,
        markeredgecolor="white",
        capsize=4 if std else 0,
        linewidth=1.8,
        linestyle="none",
        label=group.label,
        zorder=3,
    )
    beside = place + 0.035
    axes.scatter([beside] * len(values), values, color=look.color, s=14, alpha=0.55, linewidths=0, zorder=2)
