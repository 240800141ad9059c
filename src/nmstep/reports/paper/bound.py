"""The view "bound": the measured distance of the variance beside its bound (Theorem 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmstep.reports.paper.folder import StudyRuns
from nmstep.reports.paper.formats import percent, tiny
from nmstep.reports.paper.shown import Held, Picture, Shown, Table, Verdict
from nmstep.reports.plots.style import INK, grid, legend_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["show_bound"]

_KEYS = ("start", "beta2", "rows")
_ROW_KEYS = ("step", "distance", "bound")
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class _Drift:
    """The measurements from one t0 on.

    Args:
        name: of the task, and of its model where there are several.
        start: t0, optimizer steps.
        steps: after t0.
        distances: ``‖v̂_t − v̂_t0‖∞`` at each.
        bounds: what it may not exceed.
    """

    name: str
    start: int
    steps: Sequence[int]
    distances: Sequence[float]
    bounds: Sequence[float]

    @property
    def tightest(self) -> float:
        """The largest share of its bound that the distance comes to."""
        return max((d / b for d, b in zip(self.distances, self.bounds, strict=True) if b > 0), default=0.0)

    @property
    def violations(self) -> int:
        """Steps at which the distance exceeds the bound."""
        # Where a weight's first gradient is also the largest, the two are equal, but for rounding.
        return sum(d > b * (1 + _ROUNDING) for d, b in zip(self.distances, self.bounds, strict=True))


def show_bound(study: StudyRuns) -> Shown:
    """Returns the distance and the bound from each start on.

    Args:
        study: of view "bound"; its files hold the measurements.

    Raises:
        ValueError: a file is not a measurement.
    """
    drifts = [_load(path) for path in study.files if path.is_file()]
    missing = len(study.files) - len(drifts)
    return Shown(
        tables=[_table(drifts)] if drifts else [],
        verdict=_verdict(drifts),
        pictures=[Picture(file="bound.png", caption=_CAPTION, draw=lambda: _draw(drifts))],
        numbers={"drifts": [_record(drift) for drift in drifts], "missing_files": missing},
        remarks=[f"{missing} of {len(study.files)} measurements are missing."] if missing else [],
    )


_CAPTION = (
    "Solid: the measured largest change of any coordinate of the corrected variance; dashed: the bound."
)


def _load(path: Path) -> _Drift:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _KEYS if key not in values]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        # At t0 itself both are zero.
        rows = [
            [float(row[key]) for key in _ROW_KEYS] for row in values["rows"] if row["step"] > values["start"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a measurement with {', '.join(_KEYS)}: {error}") from error
    return _Drift(
        name=_name(values.get("config") or {}) or path.stem,
        start=int(values["start"]),
        steps=[int(row[0]) for row in rows],
        distances=[row[1] for row in rows],
        bounds=[row[2] for row in rows],
    )


def _name(config: Mapping[str, Any]) -> str:
    """Returns the task, with the model where that is an option of it."""
    parts = (config.get("task"), (config.get("task_options") or {}).get("model"))
    return ", ".join(str(part) for part in parts if part)


def _table(drifts: Sequence[_Drift]) -> Table:
    rows = []
    for drift in drifts:
        held = "yes" if drift.violations == 0 else f"no, at {drift.violations:,} of {len(drift.steps):,}"
        final = [tiny(values[-1]) if values else "–" for values in (drift.distances, drift.bounds)]
        rows.append([drift.name, f"{drift.start:,}", *final, percent(drift.tightest), held])
    columns = [
        "task",
        "t0",
        "distance at the end",
        "bound then",
        "largest distance / bound",
        "held at each step",
    ]
    return Table(title="‖v̂_t − v̂_t0‖∞ and its bound", columns=columns, rows=rows)


def _verdict(drifts: Sequence[_Drift]) -> Verdict:
    if not drifts:
        return Verdict(held="open", why="Nothing is measured yet.")
    good = sum(drift.violations == 0 for drift in drifts)
    held: Held = "held" if good == len(drifts) else "in part" if good else "not held"
    least = max(drift.tightest for drift in drifts)
    falling = _bounds_fall(drifts)
    text = f"The bound held at every step from {good} of {len(drifts)} starts"
    most = f"the distance came to {percent(least)} of it at most"
    order = "smaller" if falling else "not always smaller"
    compared = f" At the end, the bound is {order} for a later start." if falling is not None else ""
    return Verdict(held=held if falling is not False else "in part", why=f"{text}; {most}.{compared}")


def _bounds_fall(drifts: Sequence[_Drift]) -> bool | None:
    """Whether a later start has the smaller bound at the end; None where no training has two starts."""
    ends: dict[str, list[tuple[int, float]]] = {}
    for drift in drifts:
        if drift.bounds:
            ends.setdefault(drift.name, []).append((drift.start, drift.bounds[-1]))
    pairs = [pair for found in ends.values() for pair in zip(sorted(found), sorted(found)[1:], strict=False)]
    return all(early[1] > late[1] for early, late in pairs) if pairs else None


def _record(drift: _Drift) -> dict[str, Any]:
    return {
        "name": drift.name,
        "start": drift.start,
        "steps": len(drift.steps),
        "final_distance": drift.distances[-1] if drift.distances else None,
        "final_bound": drift.bounds[-1] if drift.bounds else None,
        "largest_distance_over_bound": drift.tightest,
        "violations": drift.violations,
    }


def _draw(drifts: Sequence[_Drift]) -> Figure | None:
    drawn = [drift for drift in drifts if drift.steps]
    if not drawn:
        return None
    figure, panels = grid([f"{drift.name}, t0 = {drift.start:,}" for drift in drawn])
    lowest = min(d for drift in drawn for d in drift.distances if d > 0)
    for axes, drift in zip(panels, drawn, strict=True):
        axes.set_yscale("log")
        axes.plot(drift.steps, drift.distances, color="#0072B2", linewidth=1.7, label="distance")
        axes.plot(drift.steps, drift.bounds, color=INK, linestyle=(0, (5, 2)), linewidth=1.5, label="bound")
        axes.set_ylim(bottom=lowest / 2, top=2 * max(max(drift.bounds) for drift in drawn))
        axes.set_xlabel("optimizer steps", fontsize=10)
        axes.set_ylabel(r"$\|\hat{v}_t - \hat{v}_{t_0}\|_\infty$", fontsize=11)
    legend_below(figure, panels)
    return figure
