"""Results in numbers: one row for each task, recipe and pattern, over all seeds."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nmstep.reports.groups import Group, group_runs
from nmstep.reports.runs import Run, load_runs

__all__ = ["gap_table", "summary_table"]

Row = dict[str, Any]


def summary_table(runs: str | os.PathLike[str] | Sequence[Run]) -> list[Row]:
    """Returns one row for each task, recipe and pattern: dense first, then by pattern and recipe.

    Only finished runs count. Runs that differ in more than the seed are never averaged: they get rows of
    their own, told apart by ``variant``.

    Args:
        runs: a folder with runs, or what :func:`~nmstep.reports.load_runs` returned.

    Returns:
        Rows of JSON values. ``task``, ``recipe``, ``pattern`` (None for dense), ``variant``; ``metric``,
        ``higher_is_better``; ``n`` runs, their ``seeds`` and ``values`` (the final metric, seed by seed),
        ``mean`` and ``std``; ``loss_mean`` and ``loss_std`` (held-out, nats); ``switch_step_mean`` (optimizer
        steps, or None), ``switch_reasons`` (reason -> runs); ``verified`` (False if any run failed, None if
        one was not checked); ``density`` (share of weights kept); ``step_ms`` (mean milliseconds a step). A
        standard deviation is the sample's, and None for a single run.

    Raises:
        FileNotFoundError: as :func:`~nmstep.reports.load_runs`.
        ValueError: as :func:`~nmstep.reports.load_runs`.
    """
    if isinstance(runs, (str, os.PathLike)):
        runs = load_runs(runs)
    return [_row(group) for group in group_runs(runs) if group.finished]


def _row(group: Group) -> Row:
    results = [run.result for run in group.finished if run.result is not None]
    metric = str(results[0]["metric"])
    values = [float(result["final"][metric]) for result in results]
    losses = [float(result["final"]["loss"]) for result in results]
    steps = [run.switch_step for run in group.finished if run.switch_step is not None]
    return {
        "task": group.task,
        "recipe": group.recipe,
        "pattern": group.pattern,
        "variant": group.variant,
        "metric": metric,
        "higher_is_better": bool(results[0]["higher_is_better"]),
        "n": len(values),
        "mean": _mean(values),
        "std": _std(values),
        "loss_mean": _mean(losses),
        "loss_std": _std(losses),
        "switch_step_mean": _mean(steps) if steps else None,
        "switch_reasons": dict(
            Counter(r.switch_reason for r in group.finished if r.switch_reason is not None)
        ),
        "verified": _all_verified([result.get("verified") for result in results]),
        "density": _known_mean([result.get("density") for result in results]),
        "step_ms": _known_mean([result.get("step_ms") for result in results]),
        "seeds": [run.seed for run in group.finished],
        "values": values,
    }


def _all_verified(verdicts: list[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _known_mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _std(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def gap_table(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns, for each task and pattern, how much of SR-STE's gap to dense STEP closes.

    Args:
        rows: from :func:`summary_table`. Where dense, SR-STE or STEP is missing, or was run with several
            settings, there is nothing to compare and no row.

    Returns:
        Rows with ``task``, ``pattern``, ``metric``; ``gap``, by how much the mean of SR-STE is worse than
        that of dense, in the metric's unit; ``closed``, the share of it that STEP wins back (above 1: better
        than dense; None where SR-STE has no gap); ``noisy``, whether the gap is smaller than the larger
        standard deviation of the two; ``loss_step`` and ``loss_srste``, their mean losses, and
        ``loss_lower``, whether STEP's is below SR-STE's.
    """
    found = []
    dense = {row["task"]: row for row in _unique(rows, "dense")}
    step = {(row["task"], row["pattern"]): row for row in _unique(rows, "step")}
    for srste in _unique(rows, "sr-ste"):
        key = (srste["task"], srste["pattern"])
        if srste["task"] in dense and key in step:
            found.append(_gap(dense[srste["task"]], srste, step[key]))
    return found


def _unique(rows: Sequence[Mapping[str, Any]], recipe: str) -> list[Mapping[str, Any]]:
    chosen = [row for row in rows if row["recipe"] == recipe]
    seen = Counter((row["task"], row["pattern"]) for row in chosen)
    return [row for row in chosen if seen[row["task"], row["pattern"]] == 1]


def _gap(dense: Mapping[str, Any], srste: Mapping[str, Any], step: Mapping[str, Any]) -> Row:
    sign = 1.0 if dense["higher_is_better"] else -1.0
    gap = sign * (dense["mean"] - srste["mean"])
    spread = max(dense["std"] or 0.0, srste["std"] or 0.0)
    return {
        "task": srste["task"],
        "pattern": srste["pattern"],
        "metric": srste["metric"],
        "gap": gap,
        "closed": sign * (step["mean"] - srste["mean"]) / gap + 0.0 if gap > 0 else None,  # no "-0 %"
        "noisy": gap < spread,
        "loss_lower": step["loss_mean"] < srste["loss_mean"],
        "loss_step": step["loss_mean"],
        "loss_srste": srste["loss_mean"],
    }
