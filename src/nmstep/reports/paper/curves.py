"""Figures of the metric: over steps, and at the end as the distance to dense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nmstep.reports.extras import require
from nmstep.reports.paper.folder import CellRuns, StudyRuns
from nmstep.reports.paper.gaps import dense_of
from nmstep.reports.paper.looks import cell_look
from nmstep.reports.paper.scores import Score
from nmstep.reports.plots.metric import draw_metric
from nmstep.reports.plots.scales import metric_label
from nmstep.reports.plots.style import INK, grid, legend_below, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "draw_distances"]


def draw_curves(study: StudyRuns) -> Figure | None:
    """Returns the held-out metric over optimizer steps, one panel a column, mean and deviation over seeds.

    In a dense phase that masks will follow, the curve is the evaluation under the mask.

    Args:
        study: the study.

    Returns:
        The figure, or None where no run holds an evaluation.
    """
    columns = {
        column: drawable
        for column, cells in study.columns.items()
        if (drawable := [cell for cell in cells if any(run.evals for run in cell.drawn)])
    }
    if not columns:
        return None
    figure, panels = grid(list(columns))
    for axes, cells in zip(panels, columns.values(), strict=True):
        draw_metric(axes, [(cell.group, cell_look(cell, cells)) for cell in cells])
    legend_below(figure, panels)
    return figure


def draw_distances(columns: Mapping[str, Sequence[Score]]) -> Figure | None:
    """Returns the final metric of each recipe as its distance to dense, one line a column.

    Args:
        columns: from :func:`~nmstep.reports.paper.scores.scores_of`.

    Returns:
        The figure; a panel for each metric, since their units differ. None where no column has both dense
        and other finished runs.
    """
    chosen: dict[str, list[tuple[str, Score, list[Score]]]] = {}
    for column, scores in columns.items():
        dense = dense_of(column, columns)
        others = [s for s in scores if s.metrics is not None and s.cell.recipe != "dense"]
        if dense is not None and others:
            chosen.setdefault(dense.metric, []).append((column, dense, others))
    if not chosen:
        return None
    lines = sum(map(len, chosen.values()))
    figure: Figure = require("matplotlib.figure").Figure(
        figsize=(9.6, 1.6 + 0.42 * lines + 0.5 * len(chosen)),
        dpi=150,
        layout="constrained",
        facecolor="white",
    )
    panels = figure.subplots(len(chosen), 1, squeeze=False, height_ratios=[len(v) for v in chosen.values()])
    for axes, (metric, entries) in zip(panels[:, 0], chosen.items(), strict=True):
        _draw_distances(axes, metric, entries)
    legend_below(figure, list(panels[:, 0]))
    return figure


def _draw_distances(axes: Axes, metric: str, entries: Sequence[tuple[str, Score, list[Score]]]) -> None:
    tidy(axes)
    shown: list[float] = []
    for place, (_, dense, scores) in enumerate(entries):
        assert dense.metrics is not None
        spread = _spread(dense)
        axes.fill_betweenx(
            [place - 0.4, place + 0.4], -spread, spread, color=INK, alpha=0.10, linewidth=0,
            label="dense ± std",
        )  # fmt: skip
        for offset, score in enumerate(scores):
            height = place + 0.6 * ((offset + 0.5) / len(scores) - 0.5)
            shown += _draw_score(axes, score, dense.metrics.center, height, [s.cell for s in scores])
    axes.axvline(0, color=INK, linestyle=(0, (5, 2)), linewidth=1.4, label="dense")
    axes.set_yticks(range(len(entries)), [column for column, _, _ in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{metric_label(metric)}: distance to dense, mean ± std", fontsize=10)
    largest = max(map(abs, shown), default=0.0)
    small = sorted(map(abs, shown))[: max(1, len(shown) // 2)]
    # A distance within the seeds' own spread is no small one among large ones, only a lucky one.
    least = max([*small, *(_spread(dense) for _, dense, _ in entries), 1e-9])
    if largest > 30 * least:
        axes.set_xscale("symlog", linthresh=least)


def _spread(score: Score) -> float:
    """Returns the standard deviation over seeds, 0 where one seed has none."""
    std = 0.0 if score.metrics is None else score.metrics.std or 0.0
    return std if math.isfinite(std) else 0.0


def _draw_score(
    axes: Axes, score: Score, dense: float, height: float, cells: Sequence[CellRuns]
) -> list[float]:
    assert score.metrics is not None
    distance = score.metrics.center - dense
    if not math.isfinite(distance):
        return []
    look = cell_look(score.cell, cells)
    axes.errorbar(
        [distance],
        [height],
        xerr=[score.metrics.std or 0.0],
        color=look.color,
        marker=look.marker or "o",
        markersize=6.5,
        markeredgecolor="white",
        linewidth=1.6,
        linestyle="none",
        label=score.cell.row,
        zorder=3,
    )
    return [distance]
