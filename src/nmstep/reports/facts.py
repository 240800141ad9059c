"""What the page says in words: settings, formatted results, sentences, plans, and runs to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nmstep.plan import SparsityPlan
from nmstep.reports.groups import Group, flat_config, group_runs, recipe_label
from nmstep.reports.runs import Run
from nmstep.switching.reasons import reason_text

__all__ = ["gap_sentences", "plan_tables", "result_rows", "run_problems", "settings", "spread"]

_FIRST = ("task", "recipe", "pattern", "seed", "steps", "batch_size", "lr", "weight_decay")
_ENVIRONMENT = {
    "cpu": "processor",
    "gpu": "accelerator",
    "threads": "threads",
    "platform": "platform",
    "python": "Python",
    "torch": "torch",
    "nmstep": "nmstep",
    "commit": "commit",
}
_OPEN_PLAN = 14
_UNITS = {"accuracy": " %", "perplexity": " ppl"}


def settings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns name and value of every setting and of the machine; values that differ are all listed."""
    runs = [run for group in group_runs(runs) for run in group.runs]
    configs = [flat_config(run) for run in runs]
    keys = [*_FIRST, *sorted({key for config in configs for key in config} - {*_FIRST, "threads"})]
    rows = []
    for key in keys:
        values = [config.get(key) for config in configs]
        rows.append((key.replace("_", " "), _distinct(values)))
    for key, label in _ENVIRONMENT.items():
        rows.append((label, _distinct([run.environment.get(key) for run in runs])))
    starts = sorted(str(run.environment["started"]) for run in runs if run.environment.get("started"))
    if starts:
        rows.append(("started", starts[0] if starts[0] == starts[-1] else f"{starts[0]} to {starts[-1]}"))
    return [(label, text) for label, text in rows if text]


def _distinct(values: Sequence[Any]) -> str:
    texts = dict.fromkeys(_text(value) for value in values)
    numbers = all(isinstance(value, (int, float)) for value in values)
    found = [_text(value) for value in sorted(set(values))] if numbers else list(texts)
    return ", ".join(text for text in found if text)


def _text(value: Any) -> str:
    if value is None or value in ({}, [], ""):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def spread(mean: float, std: float | None, digits: int) -> str:
    """Returns mean and standard deviation as text.

    Example:
        >>> spread(98.2, 0.304, 2), spread(98.2, None, 2), spread(float("nan"), None, 2)
        ('98.20 ± 0.30', '98.20', 'not finite')
    """
    if not math.isfinite(mean):
        return "not finite"
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def result_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the summary's rows as text for the results table, best sparse mean of each pattern marked."""
    dense = {row["task"]: row for row in rows if row["recipe"] == "dense"}
    one_metric = len({row["metric"] for row in rows}) == 1
    formatted = []
    for row in rows:
        base = dense.get(row["task"])
        gap = None if base is None or base is row else row["mean"] - base["mean"]
        formatted.append(
            {
                "task": row["task"],
                "recipe": recipe_label(row["recipe"]),
                "variant": row["variant"],
                "pattern": row["pattern"] or "–",
                "value": spread(row["mean"], row["std"], 2)
                + ("" if one_metric else _UNITS.get(row["metric"], "")),
                "n": row["n"],
                "gap": "–" if gap is None or not math.isfinite(gap) else f"{gap:+.2f}".replace("-", "−"),
                "loss": spread(row["loss_mean"], row["loss_std"], 4),
                "switch": _switch(row),
                "verified": row["verified"],
                "density": "–" if row["density"] is None else f"{100 * row['density']:.1f} %",
                "best": _is_best(row, rows),
                "is_dense": row["recipe"] == "dense",
            }
        )
    return formatted


def _switch(row: Mapping[str, Any]) -> str:
    if row["switch_step_mean"] is None:
        return "–"
    if row["switch_step_mean"] == 0:
        return "from the start"
    reasons = "; ".join(
        reason_text(reason) if count == row["n"] else f"{count} × {reason_text(reason)}"
        for reason, count in row["switch_reasons"].items()
    )
    return f"{row['switch_step_mean']:,.0f}" + (f" ({reasons})" if reasons else "")


def _is_best(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    rivals = [
        r["mean"]
        for r in rows
        if (r["task"], r["pattern"]) == (row["task"], row["pattern"]) and math.isfinite(r["mean"])
    ]
    if row["pattern"] is None or len(rivals) < 2:
        return False
    return bool(row["mean"] == (max(rivals) if row["higher_is_better"] else min(rivals)))


def gap_sentences(gaps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns one statement for each row of :func:`~nmstep.reports.gap_table`."""
    return [_gap_sentence(gap) for gap in gaps]


def _gap_sentence(gap: Mapping[str, Any]) -> str:
    where = f"{gap['task']} at {gap['pattern']}: "
    loss = (
        f"STEP's mean test loss is {'below' if gap['loss_lower'] else 'not below'} SR-STE's "
        f"({gap['loss_step']:.4f} against {gap['loss_srste']:.4f})."
    )
    if gap["closed"] is None:
        return f"{where}SR-STE shows no gap to dense in {gap['metric']} that STEP could close; {loss}"
    unit = "percentage points of accuracy" if gap["metric"] == "accuracy" else f"in {gap['metric']}"
    if gap["closed"] < 0:
        closes = f"STEP is worse than SR-STE, which lies {gap['gap']:.2f} {unit} behind dense"
    else:
        share = f"STEP closes {gap['closed']:.0%} of the gap between SR-STE and dense"
        closes = f"{share}, which is {gap['gap']:.2f} {unit}"
    noisy = " That gap is smaller than the standard deviation over seeds, so the share says little."
    return f"{where}{closes}; {loss}{noisy if gap['noisy'] else ''}"


def plan_tables(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns each distinct plan once, with the recipes and patterns that trained by it."""
    found: dict[str, tuple[SparsityPlan, list[Group]]] = {}
    for group in group_runs(runs):
        for plan in (run.plan for run in group.runs):
            if plan is not None and group.pattern is not None:
                users = found.setdefault(json.dumps(plan.to_dict()), (plan, []))[1]
                if group not in users:
                    users.append(group)
    return [
        {
            "title": ", ".join(dict.fromkeys(f"{g.task}, {g.pattern}" for g in users)),
            "users": ", ".join(dict.fromkeys(g.label for g in users)),
            "entries": plan.entries,
            "sparse": len(plan.sparse),
            "density": f"{100 * plan.density:.1f} %",
            "kept": f"{sum(entry.kept for entry in plan.entries):,}",
            "total": f"{sum(entry.numel for entry in plan.entries):,}",
            "open": len(plan.entries) <= _OPEN_PLAN and len(found) == 1,
        }
        for plan, users in found.values()
    ]


def run_problems(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns name and trouble of each run that is unfinished, diverged or not N:M."""
    found = []
    for run in runs:
        troubles = []
        if not run.finished:
            planned = run.config.get("steps")
            of = f" of {planned:,}" if isinstance(planned, int) else ""
            troubles.append(f"unfinished: {run.last_step:,}{of} steps recorded, not counted in the results")
        if run.diverged:
            troubles.append("diverged: a loss or metric is not a finite number")
        if run.result is not None and run.result.get("verified") is False:
            troubles.append("its final weights do not follow the pattern")
        if troubles:
            found.append((run.name, "; ".join(troubles)))
    return found
