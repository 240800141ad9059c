"""What the switch saw: Z_t and its window mean against the threshold (STEP, Fig. 3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmstep.reports.groups import Group, group_runs
from nmstep.reports.plots.style import INK, grid, legend_below, look_of, mark_steps
from nmstep.reports.runs import Run
from nmstep.switching.reasons import reason_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_switch"]

_MOST_POINTS = 2000


def plot_switch(runs: Sequence[Run]) -> Figure | None:
    """Returns Z_t, its window mean and the threshold over optimizer steps, one panel a recipe and pattern.

    Args:
        runs: from :func:`~nmstep.reports.load_runs`.

    Returns:
        The figure, or None where no run has a switch that compares the variance with a threshold.

    Source:
        STEP (Lu et al. 2023), Fig. 3.
    """
    groups = [group for group in group_runs(runs) if any(map(_is_drawable, group.runs))]
    if not groups:
        return None
    figure, panels = grid([f"{g.task}, {g.label} {g.pattern or ''}".strip() for g in groups])
    for axes, group in zip(panels, groups, strict=True):
        _draw_panel(axes, group, look_of(group, groups).color)
    legend_below(figure, panels)
    return figure


def _draw_panel(axes: Axes, group: Group, color: str) -> None:
    axes.set_yscale("log")
    column = _compared_column(group.runs[0])
    for run in group.runs[:1] if column else ():
        steps, values = _thin(_column(run, column or ""))
        label = f"Z at each step (seed {run.seed})" if len(group.runs) > 1 else "Z at each step"
        axes.plot(steps, values, color="#9a9a9a", linewidth=0.8, label=label, zorder=1.5)
    for place, run in enumerate(group.runs):
        steps, values = _thin(_column(run, "z_mean"))
        label = "its mean over the window, for each seed" if column else "what the switch compares"
        axes.plot(steps, values, color=color, linewidth=2.0 if place == 0 else 1.1, label=label)
    threshold = next(t for t in map(_threshold, group.runs) if t)
    axes.axhline(threshold, color=INK, linestyle=(0, (5, 2)), linewidth=1.3, label="threshold")
    last = max(step for run in group.runs for step, _ in _column(run, "z_mean"))
    axes.set_xlim(0, max(last * 1.12, 1))
    axes.set_xlabel("optimizer steps", fontsize=10)
    axes.set_ylabel("Z (squared gradient units)" if column else "compared value", fontsize=10)
    _mark_switches(axes, group, color)


def _mark_switches(axes: Axes, group: Group, color: str) -> None:
    switched = [run for run in group.runs if run.switch_step]
    if not switched:
        axes.annotate("no switch yet", (1, 1.01), xycoords="axes fraction", ha="right", fontsize=8.5)
        return
    steps = [run.switch_step or 0 for run in switched]
    reasons = Counter(reason_text(run.switch_reason or "reason unknown") for run in switched)
    why = "; ".join(
        reason if len(reasons) == 1 else f"{count} × {reason}" for reason, count in reasons.items()
    )
    span = f"{min(steps):,}" if min(steps) == max(steps) else f"{min(steps):,} to {max(steps):,}"
    mark_steps(axes, steps, f"switch at {span}: {why}", color)


def _compared_column(run: Run) -> str | None:
    """Returns which column the window mean averages; the first sample's mean is the sample itself."""
    for record in run.steps:
        mean = record.get("z_mean")
        if mean is not None:
            samples = {name: record.get(name) for name in ("z", "z_geometric")}
            near = (name for name, z in samples.items() if z and math.isclose(z, mean, rel_tol=1e-6))
            return next(near, None)
    return None


def _is_drawable(run: Run) -> bool:
    return bool(_column(run, "z_mean")) and _threshold(run) is not None


def _column(run: Run, name: str) -> list[tuple[int, float]]:
    return [(r["step"], r[name]) for r in run.steps if r.get(name) is not None and 0 < r[name] < math.inf]


def _thin(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = points[(len(points) - 1) % stride :: stride] if points else []
    return [step for step, _ in kept], [value for _, value in kept]


def _threshold(run: Run) -> float | None:
    return next((r["threshold"] for r in run.steps if r.get("threshold")), None)
