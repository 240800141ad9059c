"""Comparisons of recipes within a column: the gap to dense, how much of it is closed, and the order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmstep.reports.paper.estimates import Difference, Estimate, difference
from nmstep.reports.paper.formats import decimals, differing, percent, signed
from nmstep.reports.paper.scores import Score, where
from nmstep.reports.paper.shown import Table

__all__ = ["Gap", "Pair", "dense_of", "find_gaps", "find_pairs", "gap_table", "one", "pair_table"]

_ORDER = ("dense", "step", "sr-ste", "asp")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """SR-STE's distance from dense in one column, and what STEP makes of it.

    Args:
        where: the column, with its metric where it has to be told.
        task: name of the workload.
        measure: the metric's name, or ``"loss"``.
        higher_is_better: of the measure.
        rows: what the study calls STEP and SR-STE.
        gap: by how much SR-STE is worse than dense, in the measure's unit.
        behind: the same, seed by seed.
        noisy: whether the gap is within the larger standard deviation of the two; None for single seeds.
        closed: the share of it that STEP wins back; None where there is no gap, or no STEP.
        gain: STEP minus SR-STE, seed by seed.
        diverged: whether they cannot be compared because a run of theirs ended at no finite number.
        order: the rows from best to worst, as text, where dense, STEP and SR-STE are all there.
        in_order: whether that is dense ≥ STEP > SR-STE > ASP, as far as these are there.
    """

    where: str
    task: str
    measure: str
    higher_is_better: bool
    rows: tuple[str, str] = ("STEP", "SR-STE")
    gap: float | None = None
    behind: Difference | None = None
    noisy: bool | None = None
    closed: float | None = None
    gain: Difference | None = None
    diverged: bool = False
    order: str = ""
    in_order: bool | None = None

    @property
    def better(self) -> bool | None:
        """Whether STEP is the better one of STEP and SR-STE."""
        return None if self.gain is None else _sign(self.higher_is_better) * self.gain.mean > 0

    @property
    def surely_better(self) -> bool:
        """Whether it is so beyond the 95 % interval."""
        return bool(self.better) and self.gain is not None and self.gain.significant

    @property
    def surely_worse(self) -> bool:
        """Whether STEP is the worse one beyond the 95 % interval."""
        return self.better is False and self.gain is not None and self.gain.significant

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "where": self.where,
            "measure": self.measure,
            "gap": self.gap,
            "dense_minus_sr_ste": None if self.behind is None else self.behind.to_dict(),
            "noisy": self.noisy,
            "closed": self.closed,
            "step_minus_sr_ste": None if self.gain is None else self.gain.to_dict(),
            "diverged": self.diverged,
            "order": self.order,
            "in_order": self.in_order,
        }


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of a column compared seed by seed.

    Args:
        where: the column.
        first: the row that is claimed to be better.
        second: the other.
        measure: the metric's name.
        higher_is_better: of the measure.
        difference: first minus second.
    """

    where: str
    first: str
    second: str
    measure: str
    higher_is_better: bool
    difference: Difference

    @property
    def better(self) -> bool:
        """Whether the first is the better one."""
        return _sign(self.higher_is_better) * self.difference.mean > 0

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        names = {key: getattr(self, key) for key in ("where", "first", "second", "measure")}
        return {**names, "difference": self.difference.to_dict()}


def _sign(higher_is_better: bool) -> float:
    return 1.0 if higher_is_better else -1.0


def one(scores: Sequence[Score], recipe: str) -> Score | None:
    """Returns the only score of a recipe that has no place on an axis; None where there are several or none."""
    found = [s for s in scores if s.cell.recipe == recipe and s.cell.x is None and s.metrics is not None]
    return found[0] if len(found) == 1 else None


def dense_of(column: str, columns: Mapping[str, Sequence[Score]]) -> Score | None:
    """Returns the dense score of a column, or of the one that its name begins with."""
    own = one(columns[column], "dense")
    if own is not None:
        return own
    shared = (name for name in columns if column.startswith(f"{name}, "))
    return next((dense for name in shared if (dense := one(columns[name], "dense"))), None)


def find_gaps(columns: Mapping[str, Sequence[Score]], *, loss: bool = False) -> list[Gap]:
    """Returns the comparison of each column that has runs of SR-STE.

    Args:
        columns: from :func:`~nmstep.reports.paper.scores.scores_of`.
        loss: compare the held-out loss, not the metric.
    """
    several = len({s.metric for scores in columns.values() for s in scores if s.metric}) > 1
    return [
        _gap(where(column, scores, metric=several and not loss), scores, dense_of(column, columns), loss)
        for column, scores in columns.items()
        if one(scores, "sr-ste") is not None
    ]


def _value(score: Score | None, loss: bool) -> Estimate | None:
    return None if score is None else score.losses if loss else score.metrics


def _gap(name: str, scores: Sequence[Score], dense_score: Score | None, loss: bool) -> Gap:
    recipes = {"dense": dense_score} | {recipe: one(scores, recipe) for recipe in _ORDER[1:]}
    values = {recipe: value for recipe, score in recipes.items() if (value := _value(score, loss))}
    srste = recipes["sr-ste"]
    assert srste is not None
    higher = srste.higher_is_better and not loss
    found: dict[str, Any] = {"higher_is_better": higher, "measure": "loss" if loss else srste.metric}
    if "dense" in values:
        found |= _behind(values, higher)
    if (step := recipes["step"]) is not None and "step" in values:
        found["rows"] = (step.cell.row, srste.cell.row)
        pair = values["step"], values["sr-ste"]
        found["gain"] = difference(pair[0].values, pair[1].values)
        found["diverged"] = not all(math.isfinite(value.center) for value in pair)
    if {"dense", "step"} <= values.keys() and all(math.isfinite(v.center) for v in values.values()):
        rows = [(_sign(higher) * v.center, s.cell.row) for r, v in values.items() if (s := recipes[r])]
        found["order"] = _ranked(rows)
        found["in_order"] = _in_order([_sign(higher) * values[r].center for r in _ORDER if r in values])
    return Gap(where=name, task=srste.cell.task, **found)


def _ranked(rows: Sequence[tuple[float, str]]) -> str:
    """Returns the names from the best to the worst."""
    ordered = sorted(rows, key=lambda row: -row[0])
    signs = [" = " if a == b else " > " for (a, _), (b, _) in itertools.pairwise(ordered)]
    return "".join(name + sign for (_, name), sign in zip(ordered, [*signs, ""], strict=True))


def _in_order(centers: Sequence[float]) -> bool:
    """Whether the first is at least the second, and every further one below the one before it."""
    return centers[0] >= centers[1] and all(a > b for a, b in itertools.pairwise(centers[1:]))


def _behind(values: Mapping[str, Estimate], higher: bool) -> dict[str, Any]:
    sign, dense, srste = _sign(higher), values["dense"], values["sr-ste"]
    gap = sign * (dense.center - srste.center)
    found: dict[str, Any] = {"gap": gap, "behind": difference(dense.values, srste.values)}
    deviations = [value.std for value in (dense, srste) if value.std is not None]
    found["noisy"] = not gap > max(deviations) if deviations else None
    if "step" in values and gap > 0:
        found["closed"] = sign * (values["step"].center - srste.center) / gap + 0.0  # no "-0 %"
    return found


def gap_table(gaps: Sequence[Gap]) -> Table:
    """Returns the gap, the share closed, the paired difference and the order, one line a column."""
    rows = []
    for gap in gaps:
        digits = decimals(gap.measure)
        held = "" if gap.in_order is None else "yes" if gap.in_order else f"no: {gap.order}"
        closed = percent(gap.closed) + (" (noise)" if gap.noisy and gap.closed is not None else "")
        rows.append([gap.where, signed(gap.gap, digits), closed, differing(gap.gain, digits), held])
    first, second = next((gap.rows for gap in gaps if gap.gain is not None), Gap.rows)
    loss = bool(gaps) and all(gap.measure == "loss" for gap in gaps)
    return Table(
        title="The same by held-out loss" if loss else f"What {first} closes of {second}'s gap to dense",
        columns=["where", "gap", f"closed by {first}", f"{first} − {second}", "paper's order"],
        rows=rows,
        note=""
        if loss
        else f"Gap: by how much {second} is worse than dense; (noise): not more than the larger standard "
        f"deviation of the two. {first} − {second}: mean over common seeds ± the half width of its 95 % "
        "confidence interval (paired t), with a star where it excludes 0. Paper's order: dense ≥ STEP > "
        "SR-STE > ASP.",
    )


def find_pairs(columns: Mapping[str, Sequence[Score]]) -> list[Pair]:
    """Returns what else a column was made to compare.

    STEP with its variance updated, Decaying Mask with and without a dense phase, and dense with SR-STE
    where STEP was not run.
    """
    pairs = []
    for column, scores in columns.items():
        decaying = [s for s in scores if s.cell.recipe == "decaying-mask" and s.metrics is not None]
        chosen: list[tuple[Score | None, Score | None]] = [
            (one(scores, "step"), one(scores, "step-updated")),
            (decaying[1], decaying[0]) if len(decaying) == 2 else (None, None),
        ]
        if not any(s.cell.recipe == "step" for s in scores):
            chosen.append((one(scores, "dense"), one(scores, "sr-ste")))
        pairs += [pair for first, second in chosen if (pair := _pair(column, first, second)) is not None]
    return pairs


def _pair(column: str, first: Score | None, second: Score | None) -> Pair | None:
    if first is None or second is None or first.metrics is None or second.metrics is None:
        return None
    found = difference(first.metrics.values, second.metrics.values)
    if found is None:
        return None
    return Pair(
        where=column,
        first=first.cell.row,
        second=second.cell.row,
        measure=first.metric,
        higher_is_better=first.higher_is_better,
        difference=found,
    )


def pair_table(pairs: Sequence[Pair]) -> Table:
    """Returns further differences, one line each."""
    return Table(
        title="Further differences, seed by seed",
        columns=["where", "difference", "mean ± half of the 95 % interval", "seeds"],
        rows=[
            [
                p.where,
                f"{p.first} − {p.second}",
                differing(p.difference, decimals(p.measure)),
                str(p.difference.n),
            ]
            for p in pairs
        ],
        note="A star: the interval excludes 0.",
    )
