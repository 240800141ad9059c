"""The metric over steps by recipe, one panel a pattern, beside the dense run (STEP, Fig. 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmstep.reports.groups import Group, group_runs
from nmstep.reports.plots.scales import metric_label, scale_metric
from nmstep.reports.plots.series import Series, draw_line, mean_series
from nmstep.reports.plots.style import Look, grid, legend_below, look_of, mark_switches, panel_keys
from nmstep.reports.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_metric", "plot_metric"]


def plot_metric(runs: Sequence[Run]) -> Figure | None:
    """Returns the held-out metric over optimizer steps: means with a band of ± one standard deviation.

    While a recipe with masks is still dense, its curve is the evaluation under its mask (thin, dotted),
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
        members = [g for g in groups if g.task == task and g.pattern in (None, pattern)]
        draw_metric(axes, [(group, look_of(group, members)) for group in members])
    legend_below(figure, panels)
    return figure


def draw_metric(axes: Axes, members: Sequence[tuple[Group, Look]]) -> None:
    """Draws the held-out metric of groups over optimizer steps, with their switches.

    Args:
        axes: to draw on.
        members: at least one group of runs, each with how it is drawn.
    """
    runs = [run for group, _ in members for run in group.drawn]
    metric = next((run.metric for run in runs if run.finished), runs[0].metric)
    shown: list[float] = []
    for group, look in members:
        series = mean_series(group.drawn, lambda run: _masked_metric(run, metric))
        if series is not None:
            shown += [*series.mean, *(min(high, 100.0) for high in series.high if metric == "accuracy")]
            draw_line(axes, series, look, group.label, _first_sparse(group, series))
    axes.set_xlabel("optimizer steps", fontsize=10)
    axes.set_ylabel(metric_label(metric), fontsize=10)
    axes.set_xlim(left=0)
    scale_metric(axes, metric, shown)
    mark_switches(axes, [group for group, _ in members])


def _masked_metric(run: Run, metric: str) -> dict[int, float]:
    """Returns the metric of the sparse model at each step: masked evaluations while training is dense."""
    values = {}
    for record in run.evals:
        waits = record.get("phase") == "dense" and run.recipe != "dense"
        source = record.get("masked") if waits else record
        if source is not None and source.get(metric) is not None:
            values[int(record["step"])] = float(source[metric])
    return values


def _first_sparse(group: Group, series: Series) -> int:
    """Returns the index of the first step from which every run of the group is sparse; 0 for dense runs."""
    if group.recipe == "dense":
        return 0
    dense = {r["step"] for run in group.drawn for r in run.evals if r.get("phase") == "dense"}
    return next((i for i, step in enumerate(series.steps) if step not in dense), len(series.steps))
