"""The metric over steps by recipe, one panel a pattern, beside the dense run (STEP, Fig. 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmstep.reports.groups import Group, group_runs
from nmstep.reports.plots.scales import metric_label, scale_metric
from nmstep.reports.plots.series import Series, mean_series
from nmstep.reports.plots.style import Look, grid, legend_below, look_of, mark_switches, panel_keys
from nmstep.reports.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_metric"]


def plot_metric(runs: Sequence[Run]) -> Figure | None:
    """Returns the held-out metric over optimizer steps: means with a band of ± one standard deviation.

    While a recipe with a pattern is still dense, its curve is the evaluation under its mask (thin, dotted),
    as in the paper: that is what would run if training stopped there.

    Args:
        runs: from :func:`~nmstep.reports.load_runs`.

    Returns:
        The figure, or None where no run holds an evaluation.

    Source:
        STEP (Lu et al. 2023), Fig. 4 and 5.
    """
    groups = [g for g in group_runs(runs) if any(run.evals for run in g.drawn)]
    if not groups:
        return None
    keys = panel_keys(groups)
    figure, panels = grid([task if pattern is None else f"{task}, {pattern}" for task, pattern in keys])
    for axes, (task, pattern) in zip(panels, keys, strict=True):
        _draw_panel(axes, [g for g in groups if g.task == task and g.pattern in (None, pattern)])
    legend_below(figure, panels)
    return figure


def _draw_panel(axes: Axes, groups: list[Group]) -> None:
    metric = groups[0].runs[0].metric
    shown: list[float] = []
    for group in groups:
        look = look_of(group, groups)
        series = mean_series(group.drawn, lambda run: _masked_metric(run, metric))
        if series is not None:
            shown += [*series.mean, *(min(high, 100.0) for high in series.high if metric == "accuracy")]
            _draw_series(axes, group, series, look)
    axes.set_xlabel("optimizer steps", fontsize=10)
    axes.set_ylabel(metric_label(metric), fontsize=10)
    axes.set_xlim(left=0)
    scale_metric(axes, metric, shown)
    mark_switches(axes, groups)


def _draw_series(axes: Axes, group: Group, series: Series, look: Look) -> None:
    first = _first_sparse(group, series)
    if first:
        before = slice(0, first + 1)
        label = f"{group.label} while dense, with its mask"
        axes.plot(
            series.steps[before],
            series.mean[before],
            color=look.color,
            linewidth=1.2,
            linestyle=":",
            label=label,
        )
    axes.plot(
        series.steps[first:],
        series.mean[first:],
        color=look.color,
        linewidth=1.9,
        linestyle=look.line,
        label=group.label,
        marker=look.marker or None,
        markersize=4.5,
        markevery=max(1, (len(series.steps) - first) // 8),
    )
    if group.recipe != "dense" or len(group.drawn) > 1:
        axes.fill_between(series.steps, series.low, series.high, color=look.color, alpha=0.16, linewidth=0)


def _masked_metric(run: Run, metric: str) -> dict[int, float]:
    """Returns the metric of the sparse model at each step: masked evaluations while training is dense."""
    values = {}
    for record in run.evals:
        dense_phase = record.get("phase") == "dense" and run.pattern is not None
        source = record.get("masked") if dense_phase else record
        if source is not None and source.get(metric) is not None:
            values[int(record["step"])] = float(source[metric])
    return values


def _first_sparse(group: Group, series: Series) -> int:
    """Returns the index of the first step from which every run of the group is sparse; 0 for dense runs."""
    if group.pattern is None:
        return 0
    dense = {r["step"] for run in group.drawn for r in run.evals if r.get("phase") == "dense"}
    return next((i for i, step in enumerate(series.steps) if step not in dense), len(series.steps))
