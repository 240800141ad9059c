"""A statistic of Adam's second moment, taken from the records of runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from nmstep.reports.paper.estimates import Estimate, estimate
from nmstep.reports.paper.folder import CellRuns, reload
from nmstep.reports.runs import Run

__all__ = ["SHARES", "Samples", "samples_of", "value_at"]

SHARES = (0.01, 0.1, 0.2, 0.5, 1.0)
_MOST_POINTS = 1500


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A run's statistic: at steps spread over the run, and at the shares that the table shows.

    Args:
        curve: by step.
        at: by share of the run's steps; the mean over the 1 % of steps that end there.
        means: of the switch's window, by step.
        threshold: what the switch compares them with, or None.
    """

    curve: Mapping[int, float]
    at: Mapping[float, float]
    means: Mapping[int, float]
    threshold: float | None


def samples_of(cell: CellRuns, name: str, read: dict[str, Samples]) -> dict[int, Samples]:
    """Returns the statistic of each run of the cell, by seed.

    Args:
        cell: the cell; of its runs the finished ones count, or all while none is.
        name: of the column of the step records.
        read: what was taken from each run's folder so far, since columns share runs; added to.
    """
    found = {}
    for seed, folder, run in zip(cell.seeds, cell.names, cell.runs, strict=True):
        if run is not None and (run.finished or not cell.finished):
            if folder not in read:
                read[folder] = _samples(reload(run), name)
            found[seed] = read[folder]
    return found


def _samples(run: Run, name: str) -> Samples:
    steps = int(run.config.get("steps") or run.last_step)
    values = {int(r["step"]): float(r[name]) for r in run.steps if r.get(name) is not None}
    means = {int(r["step"]): float(r["z_mean"]) for r in run.steps if r.get("z_mean") is not None}
    stride = max(1, math.ceil(steps / _MOST_POINTS))
    return Samples(
        curve=_thin(values, stride),
        at={share: value for share in SHARES if (value := _mean_before(values, share, steps)) is not None},
        means=_thin(means, stride),
        threshold=next((float(r["threshold"]) for r in run.steps if r.get("threshold")), None),
    )


def _thin(values: Mapping[int, float], stride: int) -> dict[int, float]:
    last = max(values, default=0)
    return {step: value for step, value in values.items() if (last - step) % stride == 0}


def _mean_before(values: Mapping[int, float], share: float, steps: int) -> float | None:
    """Returns the mean over the 1 % of all steps that end at a share of them."""
    last, width = max(1, round(share * steps)), max(1, round(steps / 100))
    found = [values[step] for step in range(last - width + 1, last + 1) if step in values]
    return statistics.fmean(found) if found else None


def value_at(samples: Mapping[int, Samples], share: float, cell: CellRuns) -> Estimate | None:
    """Returns the geometric mean over seeds, without a spread; None where no run got so far.

    Args:
        samples: by seed.
        share: one of :data:`SHARES`.
        cell: of these runs.
    """
    values = {seed: s.at[share] for seed, s in samples.items() if s.at.get(share, 0.0) > 0}
    found = estimate({seed: math.log(value) for seed, value in values.items()}, planned=len(cell.seeds))
    if found is None:
        return None
    return Estimate(values=values, planned=found.planned, center=math.exp(found.center), std=None)
