"""Final scores: of each cell over its seeds, and what the runs took."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmstep.reports.paper.estimates import Estimate, estimate
from nmstep.reports.paper.folder import CellRuns, StudyRuns
from nmstep.reports.paper.formats import NONE, decimals, estimated, joined, signed
from nmstep.reports.paper.shown import Table
from nmstep.reports.plots.scales import metric_label
from nmstep.reports.runs import Run
from nmstep.switching.reasons import reason_text

__all__ = ["Score", "paper_table", "run_table", "score", "score_tables", "scores_of", "where"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the finished runs of a cell came to.

    Args:
        cell: the cell.
        metric: name of the task's metric; empty while no run of the cell is finished.
        higher_is_better: of the metric.
        metrics: final metric; None without a finished run.
        losses: final held-out loss.
        starts: where the masks start, as a share of the run's steps, of the runs in which they do.
        reasons: why they start, and how often.
        seconds: that a run takes, mean over runs: of the CPU, or on the clock where it runs on a GPU.
        on_gpu: whether the runs do.
        memory_mb: the most of any run, in 10⁶ bytes.
    """

    cell: CellRuns
    metric: str
    higher_is_better: bool
    metrics: Estimate | None
    losses: Estimate | None
    starts: Estimate | None
    reasons: Mapping[str, int]
    seconds: float | None
    on_gpu: bool
    memory_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        cell = self.cell
        both = (
            {} if self.metric == "loss" else {"loss": None if self.losses is None else self.losses.to_dict()}
        )
        return {
            **{key: getattr(cell, key) for key in ("row", "column", "recipe", "pattern", "paper", "x")},
            "metric": self.metric,
            "final": None if self.metrics is None else self.metrics.to_dict(),
            **both,
            "masks_start": None if self.starts is None else self.starts.to_dict(),
            "reasons": dict(self.reasons),
            "seconds" if self.on_gpu else "cpu_seconds": self.seconds,
            "peak_memory_mb": self.memory_mb,
        }


def scores_of(study: StudyRuns) -> dict[str, list[Score]]:
    """Returns the score of every cell, by column."""
    return {column: [score(cell) for cell in cells] for column, cells in study.columns.items()}


def score(cell: CellRuns) -> Score:
    """Returns what the finished runs of a cell came to."""
    runs = cell.finished
    first = next(iter(runs.values()), None)
    metric = "" if first is None else first.metric
    final = {seed: _result(run)["final"] for seed, run in runs.items()}
    starts = {
        seed: run.switch_step / int(_result(run)["steps"])
        for seed, run in runs.items()
        if run.switch_step is not None and _result(run).get("steps")
    }
    planned = len(cell.seeds)
    memory = _known(runs, "peak_memory_mb")
    on_gpu = any(str(run.config.get("device")).startswith("cuda") for run in runs.values())
    seconds = _known(runs, "seconds" if on_gpu else "cpu_seconds")
    return Score(
        cell=cell,
        metric=metric,
        higher_is_better=True if first is None else first.higher_is_better,
        metrics=estimate(
            {s: float(v[metric]) for s, v in final.items()}, planned=planned, summary=cell.summary
        ),
        losses=estimate(
            {s: float(v["loss"]) for s, v in final.items()}, planned=planned, summary=cell.summary
        ),
        starts=estimate(starts, planned=planned),
        reasons=Counter(run.switch_reason for run in runs.values() if run.switch_reason is not None),
        seconds=statistics.fmean(seconds) if seconds else None,
        on_gpu=on_gpu,
        memory_mb=max(memory) if memory else None,
    )


def _result(run: Run) -> Mapping[str, Any]:
    assert run.result is not None
    return run.result


def _known(runs: Mapping[int, Run], key: str) -> list[float]:
    values = [_result(run).get(key) for run in runs.values()]
    return [float(value) for value in values if value is not None]


def where(column: str, scores: Sequence[Score], *, metric: bool) -> str:
    """Returns the column's name, with its metric where the columns of a table differ in it."""
    name = next((s.metric for s in scores if s.metric), "")
    return f"{column} ({metric_label(name).removeprefix('held-out ')})" if metric and name else column


def score_tables(columns: Mapping[str, Sequence[Score]]) -> list[Table]:
    """Returns the final metric, and the held-out loss, of each column by row."""
    metrics = {s.metric for scores in columns.values() for s in scores if s.metric}
    one = len(metrics) == 1
    name = metric_label(next(iter(metrics))) if one else "held-out metric"
    medians = any(s.cell.summary == "median" for scores in columns.values() for s in scores)
    kind = "median [least, most]" if medians else "mean ± sample standard deviation"
    tables = [_grid(f"Final {name}: {kind}", columns, lambda s: (s.metrics, decimals(s.metric)), not one)]
    if metrics != {"loss"}:
        tables.append(_grid(f"Final held-out loss: {kind}", columns, lambda s: (s.losses, 4), False))
    return tables


def _grid(
    title: str,
    columns: Mapping[str, Sequence[Score]],
    value: Callable[[Score], tuple[Estimate | None, int]],
    metric: bool,
) -> Table:
    names = list(dict.fromkeys(s.cell.row for scores in columns.values() for s in scores))
    rows = []
    for column, scores in columns.items():
        texts = {s.cell.row: estimated(*value(s)) for s in scores}
        rows.append([where(column, scores, metric=metric), *(texts.get(name, "") for name in names)])
    seeds = sorted({len(s.cell.seeds) for scores in columns.values() for s in scores})
    note = f"{' or '.join(map(str, seeds))} seed{'' if seeds == [1] else 's'} each."
    return Table(title=title, columns=["where", *names], rows=rows, note=note)


def paper_table(columns: Mapping[str, Sequence[Score]]) -> Table | None:
    """Returns our values beside the paper's; None where none of its values is known."""
    rows = []
    for column, scores in columns.items():
        for s in scores:
            if s.cell.paper is not None:
                digits = decimals(s.metric)
                ours = None if s.metrics is None else s.metrics.center - s.cell.paper
                shown = [
                    estimated(s.metrics, digits),
                    f"{s.cell.paper:.{digits}f}",
                    signed(ours, digits),
                ]
                rows.append([where(column, scores, metric=True), s.cell.row, *shown])
    header = ["where", "row", "ours", "paper", "ours − paper"]
    return Table(title="Beside the paper's values", columns=header, rows=rows) if rows else None


def run_table(columns: Mapping[str, Sequence[Score]]) -> Table:
    """Returns where the masks start, and what a run takes."""
    rows = []
    for column, scores in columns.items():
        for s in scores:
            done = f"{len(s.cell.finished)} of {len(s.cell.seeds)}"
            seconds = NONE if s.seconds is None else f"{s.seconds:,.0f}{' (GPU)' if s.on_gpu else ''}"
            memory = NONE if s.memory_mb is None else f"{s.memory_mb:,.0f}"
            rows.append([column, s.cell.row, done, _starts(s), seconds, memory])
    return Table(
        title="Runs",
        columns=["where", "row", "done", "masks start", "s a run", "peak MB"],
        rows=rows,
        note="Masks start: share of the run's steps, mean over runs. Seconds: of the CPU; of the clock on a GPU, "
        "whose memory is then meant too. Dense runs that several columns share "
        f"were done once.{_paper_start(columns)}",
    )


def _paper_start(columns: Mapping[str, Sequence[Score]]) -> str:
    cells = [s.cell for scores in columns.values() for s in scores]
    if not any(cell.recipe == "step" and cell.task.startswith("cifar") for cell in cells):
        return ""
    return " On CIFAR, the paper's AutoSwitch fires at about 20 % of the steps."


def _starts(s: Score) -> str:
    if s.starts is None:
        return NONE
    if s.starts.center == 0:
        return "from the start"
    spread = "" if not s.starts.std else f" ± {100 * s.starts.std:.1f}"
    reasons = {reason_text(reason): count for reason, count in s.reasons.items()}
    known = {reason: count for reason, count in reasons.items() if reason != "scheduled"}
    return f"{100 * s.starts.center:.1f}{spread} %" + (f" ({joined(known)})" if known else "")
