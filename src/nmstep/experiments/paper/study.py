"""What a table or figure of the paper is: runs, what must come before them, and how they are laid out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nmstep.experiments.config import RunConfig

__all__ = ["Cell", "Drift", "LayerSearch", "Preparation", "Study", "run_name"]

Scale = Literal["cpu", "full"]
View = Literal["scores", "curves", "variance", "criteria", "shares", "storage", "bound"]


def run_name(config: RunConfig) -> str:
    """Returns the name of the folder in which a configuration runs, the same for the same configuration.

    Where its data lie and how many threads it has are no part of it, nor are settings at their defaults, so
    that a new setting renames no run. Files count by their own name without the folders above; for those that
    earlier runs wrote, that name says what is in them.

    Args:
        config: not resolved.

    Example:
        >>> run_name(RunConfig(recipe="step", pattern="1:8", seed=3))
        'digits-step-1x8-867466-s3'
    """
    default = RunConfig(recipe="dense").to_dict()
    left_out = ("data", "threads", "device", "checkpoint_every", "seed")
    values = {k: v for k, v in config.to_dict().items() if k not in left_out and v != default[k]}
    for key in ("init", "plan_file"):
        if key in values:
            values[key] = Path(values[key]).name
    if "task_options" in values:  # folders of text and of models among them count by their name too
        values["task_options"] = {
            k: Path(v).name if isinstance(v, str) else v for k, v in values["task_options"].items()
        }
    digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=3).hexdigest()
    kind = [config.pattern.replace(":", "x")] if config.pattern else ["plan"] * bool(config.plan_file)
    task = config.task.replace("/", "-")
    return "-".join([task, config.recipe, *kind, digest, f"s{config.seed}"])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table or one curve of a figure: a configuration over several seeds.

    Args:
        row: what is compared, such as STEP.
        column: where, such as a task and a pattern.
        config: of the run; its seed is replaced by each of ``seeds``.
        seeds: one run for each.
        paper: the value that the paper prints, where it is known; in the metric's unit.
        x: place on a horizontal axis, for a figure that has one.
        summary: how the seeds are put together, as the paper does.
    """

    row: str
    column: str
    config: RunConfig
    seeds: tuple[int, ...]
    paper: float | None = None
    x: float | None = None
    summary: Literal["mean", "median"] = "mean"

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """The configuration of each run."""
        return tuple(replace(self.config, seed=seed) for seed in self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Returns the cell as JSON values, its runs by the names of their folders."""
        values = {name: getattr(self, name) for name in ("row", "column", "paper", "x", "summary")}
        return {
            **values,
            "task": self.config.task,
            "recipe": self.config.recipe,
            "pattern": self.config.pattern,
            "seeds": list(self.seeds),
            "runs": [run_name(config) for config in self.configs],
        }


@dataclass(frozen=True, kw_only=True)
class LayerSearch:
    """A search for one N a layer, from a dense run's weights; its plan is kept as a file.

    Args:
        config: the dense run.
        m: M of every group.
        target: share of the planned weights that is to be zero.
        settings: further arguments of :func:`nmstep.recipes.dominosearch`.
    """

    config: RunConfig
    m: int
    target: float
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def file(self) -> str:
        """The name of the plan's file."""
        values = json.dumps([self.settings, run_name(self.config)])
        digest = hashlib.blake2b(values.encode(), digest_size=3).hexdigest()
        return f"domino-{self.config.task}-m{self.m}-{self.target:g}-{digest}.json"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A dense training in which the distance of the variance from that of one step is measured.

    Args:
        config: dense, under AdamW.
        start: t0, as a share of the run.
    """

    config: RunConfig
    start: float

    @property
    def file(self) -> str:
        """The name of the file with the measurements."""
        return f"drift-{run_name(self.config)}-{self.start:g}.json"


Preparation = RunConfig | LayerSearch | Drift


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table or figure.

    Args:
        name: as ``nmstep reproduce`` knows it.
        title: one line.
        claim: what the paper says of it, in our words.
        view: how it is shown.
        cells: what it is made of.
        before: what must be there before the cells can run, in order.
        notes: facts that a reader of the numbers needs.
        facts: JSON values that are computed, not run.
    """

    name: str
    title: str
    claim: str
    view: View
    cells: tuple[Cell, ...] = ()
    before: tuple[Preparation, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def runs(self) -> Iterator[RunConfig]:
        """Yields every run of the cells once, all first seeds before all second ones."""
        configs = [cell.configs for cell in self.cells]
        seen = set()
        for place in range(max(map(len, configs), default=0)):
            for config in (of_cell[place] for of_cell in configs if place < len(of_cell)):
                if run_name(config) not in seen:
                    seen.add(run_name(config))
                    yield config

    def to_dict(self) -> dict[str, Any]:
        """Returns the study as JSON values."""
        values = {name: getattr(self, name) for name in ("name", "title", "claim", "view", "facts")}
        files = [item.file for item in self.before if not isinstance(item, RunConfig)]
        return {
            **values,
            "notes": list(self.notes),
            "cells": [cell.to_dict() for cell in self.cells],
            "files": files,
        }
