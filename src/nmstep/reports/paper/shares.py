"""The view "shares": the final metric by the share of steps in the dense phase (Fig. 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nmstep.reports.paper.folder import StudyRuns
from nmstep.reports.paper.formats import percent
from nmstep.reports.paper.gaps import one
from nmstep.reports.paper.looks import cell_look
from nmstep.reports.paper.scores import Score, run_table, score_tables, scores_of
from nmstep.reports.paper.shown import Held, Picture, Shown, Table, Verdict
from nmstep.reports.plots.scales import metric_label
from nmstep.reports.plots.style import INK, grid, legend_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["show_shares"]

_AUTO = "#009E73"


def show_shares(study: StudyRuns) -> Shown:
    """Returns the final metric by share, beside the rows that have none.

    Args:
        study: of view "shares"; cells with ``x`` lie on the axis.
    """
    columns = scores_of(study)
    return Shown(
        tables=[*map(_turned, score_tables(columns)), run_table(columns)],
        verdict=_verdict(columns),
        pictures=[Picture(file="shares.png", caption=_CAPTION, draw=lambda: _draw(columns))],
        numbers={"scores": [s.to_dict() for scores in columns.values() for s in scores]},
    )


_CAPTION = (
    "Mean ± one standard deviation over seeds. Bands: dense and SR-STE, which have no dense phase to choose; "
    "AutoSwitch where it fires on average."
)


def _turned(table: Table) -> Table:
    """Returns the table with rows and columns exchanged, since it has many of the latter."""
    lines = [table.columns, *table.rows]
    turned = [list(line) for line in zip(*lines, strict=True)]
    columns = ["dense phase", *turned[0][1:]]
    return Table(title=table.title, columns=columns, rows=turned[1:], note=table.note)


def _on_axis(scores: Sequence[Score]) -> list[tuple[float, Score]]:
    found = [(s.cell.x, s) for s in scores if s.cell.x is not None and s.metrics is not None]
    return sorted(((x, s) for x, s in found if x is not None), key=lambda entry: entry[0])


def _center(score: Score) -> float:
    """Returns the mean so that larger is better."""
    assert score.metrics is not None
    return score.metrics.center if score.higher_is_better else -score.metrics.center


def _verdict(columns: Mapping[str, Sequence[Score]]) -> Verdict:
    """Returns which shares are within noise of the best, and whether both ends are below it."""
    sentences, full, some, judged = [], 0, 0, 0
    for column, scores in columns.items():
        points = _on_axis(scores)
        if len(points) >= 3 and all(math.isfinite(_center(s)) for _, s in points):
            judged += 1
            text, held = _judged(points, one(scores, "step"))
            sentences.append(f"{column}: {text}")
            full += held == "held"
            some += held != "not held"
    if not judged:
        return Verdict(held="open", why="Too few shares have their runs yet.")
    answer: Held = "held" if full == judged else "in part" if some else "not held"
    return Verdict(held=answer, why=" ".join(sentences))


def _judged(points: Sequence[tuple[float, Score]], auto: Score | None) -> tuple[str, Held]:
    """Returns what the shares show, and whether a range of them works while both ends of the axis do not."""
    best_share, best = max(points, key=lambda point: _center(point[1]))
    assert best.metrics is not None
    noise = best.metrics.std or 0.0
    near = [x for x, s in points if _center(best) - _center(s) <= noise]
    ends = [points[0][0] not in near, points[-1][0] not in near]
    text = (
        f"the best share is {percent(best_share)}; within its standard deviation ({noise:.2f}) are "
        f"{', '.join(map(percent, near))}. The shortest dense phase ({percent(points[0][0])}) is "
        f"{'below' if ends[0] else 'within'} that, the longest ({percent(points[-1][0])}) "
        f"{'below' if ends[1] else 'within'} it."
    )
    if auto is not None and auto.metrics is not None and auto.starts is not None:
        position = "within" if _center(best) - _center(auto) <= noise else "below"
        text += f" AutoSwitch ({100 * auto.starts.center:.1f} %) is {position} it."
    seen = [len(near) >= 2, *ends]
    return text, "held" if all(seen) else "in part" if any(ends) else "not held"


def _draw(columns: Mapping[str, Sequence[Score]]) -> Figure | None:
    drawn = {column: scores for column, scores in columns.items() if _on_axis(scores)}
    if not drawn:
        return None
    figure, panels = grid(list(drawn), height=3.8)
    for axes, scores in zip(panels, drawn.values(), strict=True):
        _draw_panel(axes, scores)
    legend_below(figure, panels)
    return figure


def _draw_panel(axes: Axes, scores: Sequence[Score]) -> None:
    for recipe in ("dense", "sr-ste"):
        score = one(scores, recipe)
        if score is not None and score.metrics is not None:
            look, spread = cell_look(score.cell, [score.cell]), score.metrics.std or 0.0
            center = score.metrics.center
            axes.axhline(center, color=look.color, linestyle=(0, (5, 2)), linewidth=1.5, label=score.cell.row)
            axes.axhspan(center - spread, center + spread, color=look.color, alpha=0.10, linewidth=0)
    points = _on_axis(scores)
    _draw_points(axes, [(100 * x, s) for x, s in points], "#0072B2", "o", "-", "STEP, switch fixed")
    auto = one(scores, "step")
    if auto is not None and auto.starts is not None:
        _draw_points(axes, [(100 * auto.starts.center, auto)], _AUTO, "*", "none", "AutoSwitch")
    axes.set_xlim(0, 100)
    axes.set_xlabel("dense phase (% of the steps)", fontsize=10)
    axes.set_ylabel(f"final {metric_label(points[0][1].metric)}", fontsize=10, color=INK)


def _draw_points(
    axes: Axes, points: Sequence[tuple[float, Score]], color: str, marker: str, line: str, label: str
) -> None:
    known = [(x, s.metrics) for x, s in points if s.metrics is not None]
    axes.errorbar(
        [x for x, _ in known],
        [m.center for _, m in known],
        yerr=[m.std or 0.0 for _, m in known],
        color=color,
        marker=marker,
        markersize=13 if marker == "*" else 6,
        markeredgecolor="white",
        capsize=3,
        linewidth=1.8,
        linestyle=line,
        label=label,
        zorder=3,
    )
