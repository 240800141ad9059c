"""The look that all plots share: colours, markers, axes and legends.

Everything is set on the objects themselves: matplotlib's global settings and pyplot are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmstep.reports.extras import require
from nmstep.reports.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INK", "Look", "grid", "legend_below", "look_of", "mark_steps", "panel_keys", "tidy"]

INK = "#222222"
_LINES = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1)))


@dataclass(frozen=True)
class Look:
    """How one recipe is drawn, in every plot alike.

    Args:
        color: from the Okabe-Ito palette, which stays apart for colour-blind readers.
        marker: tells recipes apart in greyscale too.
        line: matplotlib line style.
    """

    color: str
    marker: str
    line: Any = "-"


_LOOKS = {
    "dense": Look(INK, "", (0, (5, 2))),
    "asp": Look("#E69F00", "^"),
    "ste": Look("#CC79A7", "v"),
    "sr-ste": Look("#D55E00", "s"),
    "decaying-mask": Look("#009E73", "D"),
    "step-updated": Look("#56B4E9", "P"),
    "step": Look("#0072B2", "o"),
}
_UNKNOWN = Look("#7F6A93", "X")


def look_of(group: Group, groups: Sequence[Group]) -> Look:
    """Returns the look of a group; variants of one recipe differ in their line."""
    look = _LOOKS.get(group.recipe, _UNKNOWN)
    siblings = [
        g.variant
        for g in groups
        if (g.task, g.recipe, g.pattern) == (group.task, group.recipe, group.pattern)
    ]
    place = sorted(set(siblings)).index(group.variant)
    return look if place == 0 else Look(look.color, look.marker, _LINES[place % len(_LINES)])


def panel_keys(groups: Sequence[Group]) -> list[tuple[str, str | None]]:
    """Returns task and pattern of each panel; a task with nothing but dense runs gets one of its own."""
    keys = list(dict.fromkeys((g.task, g.pattern) for g in groups))
    return [
        key
        for key in keys
        if key[1] is not None or not any(k[0] == key[0] and k[1] is not None for k in keys)
    ]


def grid(titles: Sequence[str], *, height: float = 3.3, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one titled panel for each title, in rows of at most ``columns``.

    Args:
        titles: of the panels.
        height: of one panel, in inches.
        columns: most panels in a row.
    """
    figure_type = require("matplotlib.figure").Figure
    across = 2 if len(titles) == 4 and columns > 2 else min(columns, len(titles))
    down = -(-len(titles) // across)
    width = {1: 7.2, 2: 9.6}.get(across, 11.0)
    figure = figure_type(
        figsize=(width, height * down + 0.7), dpi=160, layout="constrained", facecolor="white"
    )
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    panels = [figure.add_subplot(down, across, place + 1) for place in range(len(titles))]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=11, color=INK, loc="left", fontweight="bold", pad=16)
        tidy(axes)
    return figure, panels


def tidy(axes: Axes) -> None:
    """Gives axes a light grid, no box, and readable ticks."""
    axes.grid(visible=True, which="major", color="#d9d9d9", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#8a8a8a")
    axes.tick_params(which="both", labelsize=9.5, colors=INK, color="#8a8a8a")


def mark_steps(axes: Axes, steps: Sequence[float], text: str, color: str) -> None:
    """Marks optimizer steps by thin upright lines, with one text above the panel at their mean."""
    for step in sorted(set(steps)):
        axes.axvline(step, color=color, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    low, high = axes.get_xlim()
    mean = sum(steps) / len(steps)
    place = (mean - low) / (high - low)
    align = "left" if place < 0.2 else "right" if place > 0.8 else "center"
    axes.annotate(
        text,
        (mean, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2.5),
        textcoords="offset points",
        ha=align,
        va="bottom",
        fontsize=8.5,
        color=color,
    )


def mark_switches(axes: Axes, groups: Sequence[Group]) -> None:
    """Marks where the masks of each group start, if not with the first step."""
    low, high = axes.get_xlim()
    starting = [(g, [run.switch_step for run in g.drawn if run.switch_step]) for g in groups]
    found = [(sum(steps) / len(steps), g.label, g, steps) for g, steps in starting if steps]
    found.sort(key=lambda entry: entry[:2])
    labels: list[str] = []
    for place, (mean, label, group, steps) in enumerate(found):
        labels.append(label)
        following = found[place + 1][0] if place + 1 < len(found) else math.inf
        # Texts of lines that are close to each other would overlap: they share one.
        text = "" if following - mean < 0.2 * (high - low) else ", ".join(labels)
        labels = [] if text else labels
        mark_steps(
            axes, steps, f"{text}: masks start" if len(found) == 1 else text, look_of(group, groups).color
        )


def _columns(labels: Sequence[str], width: float) -> int:
    """Returns the most legend columns that fit into ``width`` inches, filled from top to bottom."""
    for rows in range(1, len(labels)):
        filled = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        # About 0.085 inches a letter, and 0.75 for the line and the space beside it.
        if sum(0.75 + 0.085 * max(map(len, column)) for column in filled) <= width:
            return len(filled)
    return 1


def legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """Puts one legend for all panels under them, where it covers no data, in as many columns as fit."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=_columns(list(entries), float(figure.get_figwidth())),
            fontsize=9.5,
            frameon=False,
            labelcolor=INK,
            handlelength=2.8,
        )
