"""Which runs belong together: same task, recipe and pattern, same settings, different seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nmstep.patterns import NMPattern
from nmstep.reports.runs import Run

__all__ = ["Group", "flat_config", "group_runs", "pattern_key", "recipe_key", "recipe_label"]

_LABELS = {
    "dense": "dense",
    "asp": "ASP",
    "ste": "STE",
    "sr-ste": "SR-STE",
    "decaying-mask": "Decaying Mask",
    "step-updated": "STEP, variance updated",
    "step": "STEP",
}
# How often a run saves or is evaluated does not change what it computes.
_NOT_SETTINGS = frozenset({"seed", "threads", "eval_every", "checkpoint_every"})


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed only.

    Args:
        task: name of the workload.
        recipe: name of the recipe.
        pattern: the pattern's text, or None for dense.
        variant: the settings that tell this group from others of the same task, recipe and pattern, such
            as ``"lr=0.01"``; empty where there is no other.
        runs: ordered by seed.
    """

    task: str
    recipe: str
    pattern: str | None
    variant: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that wrote a result."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def drawn(self) -> tuple[Run, ...]:
        """The runs that curves average over: the finished ones, or all while none is."""
        return self.finished or self.runs

    @property
    def label(self) -> str:
        """Name for legends and tables."""
        return recipe_label(self.recipe) + (f" ({self.variant})" if self.variant else "")


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Returns the groups: by task, dense first, then by pattern from dense to sparse, then by recipe."""
    found: dict[tuple[str, str, str | None], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.name)):
        found.setdefault((run.task, run.recipe, run.pattern), []).append(run)
    groups = [
        Group(task=task, recipe=recipe, pattern=pattern, variant=variant, runs=tuple(members))
        for (task, recipe, pattern), together in found.items()
        for variant, members in _variants(together).items()
    ]
    return sorted(groups, key=lambda g: (g.task, pattern_key(g.pattern), recipe_key(g.recipe), g.variant))


def flat_config(run: Run) -> dict[str, Any]:
    """Returns the run's settings, those of nested tables too, under their own names."""
    flat: dict[str, Any] = {}
    for key, value in run.config.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _variants(runs: list[Run]) -> dict[str, list[Run]]:
    configs = [flat_config(run) for run in runs]
    keys = sorted({key for config in configs for key in config} - _NOT_SETTINGS)
    differing = [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]
    variants: dict[str, list[Run]] = {}
    for run, config in zip(runs, configs, strict=True):
        text = ", ".join(f"{key}={config.get(key)}" for key in differing)
        variants.setdefault(text, []).append(run)
    return variants


def recipe_label(recipe: str) -> str:
    """Returns the recipe's name as its paper writes it.

    Example:
        >>> recipe_label("sr-ste")
        'SR-STE'
    """
    return _LABELS.get(recipe, recipe)


def recipe_key(recipe: str) -> tuple[int, str]:
    """Returns a sort key: dense first, STEP last of the known ones, unknown ones after it."""
    order = list(_LABELS)
    return (order.index(recipe) if recipe in order else len(order), recipe)


def pattern_key(pattern: str | None) -> tuple[float, int, str]:
    """Returns a sort key: dense first, then by falling density, patterns of no single N:M last.

    Example:
        >>> sorted(["1:16", "mixed", "2:4", "1:4"], key=pattern_key)
        ['2:4', '1:4', '1:16', 'mixed']
    """
    if pattern is None:
        return (-2.0, 0, "")
    try:
        parsed = NMPattern.parse(pattern)
    except ValueError:
        return (1.0, 0, pattern)
    return (-parsed.density, parsed.m, pattern)
