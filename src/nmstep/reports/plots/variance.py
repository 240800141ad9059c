"""The norm of Adam's second moment over steps, by recipe (STEP, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nmstep.reports.groups import Group, group_runs
from nmstep.reports.plots.series import draw_line, mean_series
from nmstep.reports.plots.style import grid, legend_below, look_of, mark_switches, panel_keys
from nmstep.reports.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_variance_norm"]


def plot_variance_norm(runs: Sequence[Run], norm: Literal[1, 2] = 1) -> Figure | None:
    """Returns the norm of Adam's second moment v over optimizer steps, on a log scale, by recipe.

    Lines are geometric means over seeds, bands one geometric standard deviation.

    Args:
        runs: from :func:`~nmstep.reports.load_runs`.
        norm: 1 for ‖v‖₁, 2 for ‖v‖₂.

    Returns:
        The figure, or None where no run sampled the norm.

    Raises:
        ValueError: ``norm`` is neither 1 nor 2.

    Source:
        STEP (Lu et al. 2023), Fig. 2.
    """
    if norm not in (1, 2):
        raise ValueError(f"norm={norm!r}: expected 1 for ‖v‖₁ or 2 for ‖v‖₂")
    column = f"v_norm{norm}"
    groups = [g for g in group_runs(runs) if any(_samples(run, column) for run in g.drawn)]
    if not groups:
        return None
    keys = panel_keys(groups)
    figure, panels = grid([task if pattern is None else f"{task}, {pattern}" for task, pattern in keys])
    for axes, (task, pattern) in zip(panels, keys, strict=True):
        _draw_panel(axes, [g for g in groups if g.task == task and g.pattern in (None, pattern)], column)
        axes.set_ylabel(f"‖v‖{'₁' if norm == 1 else '₂'} (squared gradient units)", fontsize=10)
    legend_below(figure, panels)
    return figure


def _draw_panel(axes: Axes, groups: list[Group], column: str) -> None:
    axes.set_yscale("log")
    for group in groups:
        look = look_of(group, groups)
        series = mean_series(group.drawn, lambda run: _samples(run, column), log=True)
        if series is not None:
            draw_line(axes, series, look, group.label)
    axes.set_xlim(left=0)
    axes.set_xlabel("optimizer steps", fontsize=10)
    mark_switches(axes, groups)


def _samples(run: Run, column: str) -> dict[int, float]:
    return {int(r["step"]): float(r[column]) for r in run.steps if r.get(column) is not None}
