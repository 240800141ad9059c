"""How the cells of a study are drawn: by their recipes, as in all plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nmstep.reports.extras import require
from nmstep.reports.paper.folder import CellRuns
from nmstep.reports.plots.style import Look, look_of

__all__ = ["cell_look"]

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
