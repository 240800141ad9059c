"""The view "criteria": where switch criteria would fire on recorded dense runs (Table 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmstep.reports.paper.estimates import Estimate, estimate
from nmstep.reports.paper.folder import CellRuns, StudyRuns
from nmstep.reports.paper.formats import NONE, estimated, joined, tiny
from nmstep.reports.paper.replays import HORIZON, MAIN, Replayed, replay_run
from nmstep.reports.paper.scores import run_table, scores_of
from nmstep.reports.paper.shown import Held, Picture, Shown, Table, Verdict
from nmstep.reports.plots.series import mean_series
from nmstep.reports.plots.style import INK, grid, legend_below
from nmstep.reports.runs import Run
from nmstep.switching.reasons import reason_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["show_criteria"]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00")
_CAPTION = "Z_t of the dense runs, geometric mean over seeds; upright lines: mean t0 of each criterion."


@dataclass(frozen=True, kw_only=True)
class _Decided:
    """A criterion over the seeds of a column.

    Args:
        start: t0, over the seeds at which it fires; None if it fires at none.
        change: of v after it.
        reasons: why it fired, and how often.
    """

    start: Estimate | None
    change: Estimate | None
    reasons: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Column:
    cell: CellRuns
    runs: Mapping[int, Replayed]

    @property
    def steps(self) -> int:
        return max((run.steps for run in self.runs.values()), default=0)

    @property
    def decided(self) -> dict[str, _Decided]:
        names = dict.fromkeys(name for run in self.runs.values() for name in run.decisions)
        return {name: self._decided(name) for name in names}

    def _decided(self, name: str) -> _Decided:
        fired = {s: found for s, run in self.runs.items() if (found := run.decisions.get(name)) is not None}
        changes = {seed: found.change for seed, found in fired.items() if found.change is not None}
        planned = len(self.cell.seeds)
        return _Decided(
            start=estimate({seed: float(found.step) for seed, found in fired.items()}, planned=planned),
            change=estimate(changes, planned=planned),
            reasons=Counter(reason_text(found.reason) for found in fired.values()),
        )


def show_criteria(study: StudyRuns) -> Shown:
    """Returns where each criterion fires on each run, and how much v changes after.

    Args:
        study: of view "criteria"; its runs are dense and have recorded every step.

    Raises:
        ValueError: a run's record lacks a step.
    """
    columns = [
        _Column(cell=cell, runs={seed: replay_run(run) for seed, run in cell.finished.items()})
        for cell in study.cells
    ]
    return Shown(
        tables=[*map(_table, columns), run_table(scores_of(study))],
        verdict=_verdict([column for column in columns if column.runs]),
        pictures=[Picture(file="criteria.png", caption=_CAPTION, draw=lambda: _draw(columns))],
        numbers={"criteria": [_record(column) for column in columns], "horizon": HORIZON},
        remarks=[
            f"The change after t0 is the mean of ‖v_(t+1) − v_t‖₁, a sum over all coordinates, over the "
            f"{HORIZON:,} steps after t0, or as many as remain.",
            "All criteria are decided on the same recorded dense runs. Those without a window in their name are at "
            "their defaults: a window of 1 / (1 − β2) steps; AutoSwitch between 10 % and 50 % of the steps.",
        ],
    )


def _table(column: _Column) -> Table:
    rows = []
    for name, found in column.decided.items():
        if found.start is None:
            rows.append([name, "never", NONE, NONE, NONE])
            continue
        share = f"{100 * found.start.center / column.steps:.1f} %"
        change = NONE if found.change is None else tiny(found.change.center)
        spread = "" if found.change is None or found.change.std is None else f" ± {tiny(found.change.std)}"
        rows.append([name, estimated(found.start, 0), share, change + spread, joined(found.reasons)])
    size = next((run.d for run in column.runs.values()), None)
    what = f": {column.steps:,} steps, {size:,} coordinates" if size else ""
    columns = ["criterion", "t0", "of the steps", "change of v after", "why"]
    return Table(title=column.cell.column + what, columns=columns, rows=rows)


def _verdict(columns: Sequence[_Column]) -> Verdict:
    """Returns whether AutoSwitch fires last of the three, and v changes least after it."""
    if not columns:
        return Verdict(held="open", why="No dense run is there yet.")
    later = least = 0
    others: list[str] = []
    for column in columns:
        own, *rivals = (column.decided[name] for name in MAIN)
        starts = [rival.start.center for rival in rivals if rival.start is not None]
        changes = [rival.change.center for rival in rivals if rival.change is not None]
        if own.start is not None:
            # A rival that never fires is not an earlier one.
            later += len(starts) == len(rivals) and all(own.start.center > start for start in starts)
            least += own.change is not None and all(own.change.center < change for change in changes)
        others += _oddities(column)
    held: Held = "held" if later == least == len(columns) else "in part" if later + least else "not held"
    text = (
        f"AutoSwitch fires later than both published criteria in {later} of {len(columns)}, and v changes less "
        f"after it than after those that fire in {least} of {len(columns)}."
    )
    return Verdict(held=held, why=" ".join([text, *others]))


def _oddities(column: _Column) -> list[str]:
    never = [name for name in MAIN if column.decided[name].start is None]
    found = [f"{name[0].upper()}{name[1:]} never fires on {column.cell.column}." for name in never]
    forced = column.decided[MAIN[0]].reasons.get(reason_text("t_max"), 0)
    if forced:
        found.append(
            f"On {column.cell.column}, AutoSwitch's latest allowed step decides in {forced} of its runs."
        )
    return found


def _record(column: _Column) -> dict[str, Any]:
    return {
        "column": column.cell.column,
        "planned": len(column.cell.seeds),
        "seeds": {str(seed): _run_record(run) for seed, run in column.runs.items()},
    }


def _run_record(run: Replayed) -> dict[str, Any]:
    decisions = {
        name: None if found is None else {"t0": found.step, "why": found.reason, "change": found.change}
        for name, found in run.decisions.items()
    }
    return {"steps": run.steps, "coordinates": run.d, "criteria": decisions}


def _draw(columns: Sequence[_Column]) -> Figure | None:
    drawn = [column for column in columns if column.runs]
    if not drawn:
        return None
    figure, panels = grid([column.cell.column for column in drawn])
    for axes, column in zip(panels, drawn, strict=True):
        _draw_panel(axes, column)
    legend_below(figure, panels)
    return figure


def _draw_panel(axes: Axes, column: _Column) -> None:
    def curve(run: Run) -> dict[int, float]:
        return dict(column.runs[run.seed].curve)

    axes.set_yscale("log")
    series = mean_series(column.cell.drawn, curve, log=True)
    if series is not None:
        axes.plot(series.steps, series.mean, color="#9a9a9a", linewidth=1.0, label="Z of the dense runs")
    axes.set_xlim(0, column.steps)
    axes.axhline(1e-8, color=INK, linestyle=(0, (5, 2)), linewidth=1.3, label="AutoSwitch's threshold")
    for color, (name, found) in zip(_COLORS, column.decided.items(), strict=False):
        if found.start is not None:
            label = name.partition(", window")[0] + (", short window" if ", window" in name else "")
            axes.axvline(found.start.center, color=color, linewidth=1.6, label=label)
    axes.set_xlabel("optimizer steps", fontsize=10)
    axes.set_ylabel("$Z_t$ (squared gradient units)", fontsize=10)
