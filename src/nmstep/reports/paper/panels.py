"""Panels of a study's figures: one a column, with the looks that all plots share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nmstep.reports.extras import require
from nmstep.reports.paper.folder import CellRuns
from nmstep.reports.plots.series import Series
from nmstep.reports.plots.style import Look, look_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["cell_look", "draw_line"]

_LINES = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1)))


def cell_look(cell: CellRuns, cells: Sequence[CellRuns]) -> Look:
    """Returns how a cell is drawn beside others: by its recipe, several of one recipe from dark to light."""
    look = look_of(cell.group, [cell.group])
    siblings = [other.row for other in cells if other.recipe == cell.recipe]
    if len(siblings) < 2:
        return look
    place = siblings.index(cell.row)
    share = 0.25 - 0.75 * place / (len(siblings) - 1)
    return replace(look, color=_mixed(look.color, share), line=_LINES[place % len(_LINES)])


def _mixed(color: str, share: float) -> str:
    """Returns a colour mixed with black (``share`` above zero) or with white (below)."""
    colors = require("matplotlib.colors")
    other = 0.0 if share > 0 else 1.0
    mixed = [(1 - abs(share)) * part + abs(share) * other for part in colors.to_rgb(color)]
    return str(colors.to_hex(mixed))


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
