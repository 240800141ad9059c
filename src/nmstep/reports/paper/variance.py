"""The view "variance": a statistic of Adam's second moment over steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nmstep.reports.paper.folder import CellRuns, StudyRuns
from nmstep.reports.paper.formats import percent, tiny
from nmstep.reports.paper.looks import cell_look
from nmstep.reports.paper.samples import SHARES, Samples, samples_of, value_at
from nmstep.reports.paper.scores import Score, run_table, scores_of
from nmstep.reports.paper.shown import Held, Picture, Shown, Table, Verdict
from nmstep.reports.plots.series import draw_line, mean_series
from nmstep.reports.plots.style import grid, legend_below, mark_switches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["show_variance"]

_LABELS = {"v_norm1": "‖v‖₁", "v_norm2": "‖v‖₂", "z": "Z_t = ‖v_t − v_{t−1}‖₁ / d"}
_AXES = {
    "v_norm1": r"$\|v\|_1$",
    "v_norm2": r"$\|v\|_2$",
    "z": r"$Z_t = \|v_t - v_{t-1}\|_1 \,/\, d$",
}
_SETTLED = 10.0
_THRESHOLD, _WINDOW = "#CC79A7", "#009E73"


_Column = list[tuple[CellRuns, dict[int, Samples]]]


def show_variance(study: StudyRuns) -> Shown:
    """Returns the statistic over steps for each cell, its table, and what became of it.

    Args:
        study: of view "variance"; ``facts["column"]`` names the column of the step records.
    """
    name = str(study.facts.get("column", "v_norm1"))
    found: dict[str, _Column] = {}
    read: dict[str, Samples] = {}
    for column, cells in study.columns.items():
        found[column] = [(cell, samples_of(cell, name, read)) for cell in cells]
    scores = scores_of(study)
    return Shown(
        tables=[_table(found, name), run_table(scores)],
        verdict=_settling(found, scores) if name == "z" else _shift(found),
        pictures=[
            Picture(file="variance.png", caption=_caption(name), draw=lambda: _draw(found, name)),
        ],
        numbers={
            "statistic": name,
            "scores": [s.to_dict() for column in scores.values() for s in column],
            "samples": [
                {
                    "row": cell.row,
                    "column": column,
                    "at": {f"{share:g}": _record(samples, share, cell) for share in SHARES},
                }
                for column, cells in found.items()
                for cell, samples in cells
            ],
        },
        remarks=[
            "The statistic at a share of the steps is its mean over the 1 % of all steps that end there, and the "
            "geometric mean over seeds."
        ],
    )


def _record(samples: Mapping[int, Samples], share: float, cell: CellRuns) -> dict[str, Any] | None:
    value = value_at(samples, share, cell)
    return None if value is None else value.to_dict()


def _table(found: Mapping[str, _Column], name: str) -> Table:
    rows = []
    for column, cells in found.items():
        for cell, samples in cells:
            values = [value_at(samples, share, cell) for share in SHARES]
            shown = [tiny(None if value is None else value.center) for value in values]
            rows.append([column, cell.row, *shown, f"{len(samples)} of {len(cell.seeds)}"])
    shares = [f"at {percent(share)}" for share in SHARES]
    title = f"{_LABELS.get(name, name)} by share of the steps"
    return Table(title=title, columns=["where", "row", *shares, "seeds"], rows=rows)


def _shift(found: Mapping[str, _Column]) -> Verdict:
    """Returns by which factor masks change the statistic at the end, against dense."""
    sentences, changed, compared = [], 0, 0
    for column, cells in found.items():
        dense = next((_ends(samples) for cell, samples in cells if cell.recipe == "dense"), {})
        others = [(cell.row, _ends(samples)) for cell, samples in cells if cell.recipe != "dense"]
        texts = []
        for row, ends in others:
            ratios = [ends[seed] - dense[seed] for seed in ends if seed in dense]
            if ratios:
                compared += len(ratios) > 1
                changed += len(ratios) > 1 and (min(ratios) > 0 or max(ratios) < 0)
                texts.append(f"{math.exp(statistics.fmean(ratios)):.2f} times ({row})")
        if texts:
            sentences.append(f"{column}: at the end, {', '.join(texts)} that of dense.")
    if not compared:
        return Verdict(held="open", why=" ".join([*sentences, "No comparison has two seeds yet."]))
    tail = f"The same way at every seed in {changed} of {compared}."
    held: Held = "held" if changed == compared else "in part" if changed else "not held"
    return Verdict(held=held, why=" ".join([*sentences, tail]))


def _ends(samples: Mapping[int, Samples]) -> dict[int, float]:
    """Returns the logarithm of the statistic at the end, by seed."""
    return {seed: math.log(s.at[1.0]) for seed, s in samples.items() if s.at.get(1.0, 0.0) > 0}


def _settling(found: Mapping[str, _Column], scores: Mapping[str, Sequence[Score]]) -> Verdict:
    """Returns by which factor the change per step falls in dense runs, and where AutoSwitch fires."""
    sentences, settled, judged = [], 0, 0
    for column, cells in found.items():
        for cell, samples in cells:
            early, late = value_at(samples, 0.01, cell), value_at(samples, 1.0, cell)
            half = value_at(samples, 0.5, cell)
            if cell.recipe == "dense" and early and late and half:
                judged += 1
                settled += early.center > _SETTLED * max(half.center, late.center)
                sentences.append(
                    f"{column}: Z falls by a factor of {tiny(early.center / half.center)} from 1 % to 50 % of the "
                    f"steps, and by {tiny(early.center / late.center)} to the end."
                )
        sentences += [
            f"AutoSwitch fires at {100 * score.starts.center:.1f} % of the steps."
            for score in scores[column]
            if score.cell.recipe == "step" and score.starts is not None
        ]
    if not judged:
        return Verdict(held="open", why="No dense run is there yet.")
    held: Held = "held" if settled == judged else "in part" if settled else "not held"
    why = f"{' '.join(sentences)} Held is: lower by a factor of {_SETTLED:g} at half and at the end."
    return Verdict(held=held, why=why)


def _caption(name: str) -> str:
    text = f"{_LABELS.get(name, name)}: geometric mean over seeds with one geometric standard deviation."
    if name != "z":
        return f"{text} A line ends where the variance is frozen."
    return (
        f"{text} Green: the mean over AutoSwitch's window, for each seed, as far as it was recorded. "
        f"Upright lines: the masks start."
    )


def _draw(found: Mapping[str, _Column], name: str) -> Figure | None:
    columns = {
        c: cells for c, cells in found.items() if any(s.curve for _, runs in cells for s in runs.values())
    }
    if not columns:
        return None
    figure, panels = grid(list(columns))
    for axes, cells in zip(panels, columns.values(), strict=True):
        _draw_panel(axes, cells, name)
    legend_below(figure, panels)
    return figure


def _draw_panel(axes: Axes, cells: _Column, name: str) -> None:
    axes.set_yscale("log")
    drawn = [cell for cell, _ in cells]
    for cell, samples in cells:
        by_seed = {seed: s.curve for seed, s in samples.items()}
        runs = [run for run in cell.drawn if run.seed in by_seed]
        series = mean_series(runs, lambda run, curves=by_seed: dict(curves[run.seed]), log=True)  # type: ignore[misc]
        look = cell_look(cell, drawn)
        if series is not None:
            draw_line(axes, series, look, cell.row, thin=name == "z")
        if name == "z":
            _draw_switch(axes, samples)
    axes.set_xlim(left=0)
    axes.set_xlabel("optimizer steps", fontsize=10)
    axes.set_ylabel(_AXES.get(name, name), fontsize=11)
    mark_switches(axes, [cell.group for cell in drawn])


def _draw_switch(axes: Axes, samples: Mapping[int, Samples]) -> None:
    """Draws the window's means and the threshold."""
    for s in samples.values():
        if s.means:
            axes.plot(
                list(s.means),
                list(s.means.values()),
                color=_WINDOW,
                linewidth=1.4,
                label="mean of the window",
            )
    threshold = next((s.threshold for s in samples.values() if s.threshold), None)
    if threshold is not None:
        axes.axhline(threshold, color=_THRESHOLD, linestyle=(0, (5, 2)), linewidth=1.3, label="threshold")
