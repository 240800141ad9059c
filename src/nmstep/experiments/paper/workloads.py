"""The paper's workloads at two scales: every setting of a run but the recipe and the seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nmstep.experiments.config import RunConfig
from nmstep.experiments.options import RecipeOptions
from nmstep.experiments.paper.study import Cell, Scale

__all__ = ["Scope", "Workload"]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What the user chose for all workloads.

    Args:
        scale: cpu for two cores, full for the paper's sizes.
        data: folder that holds the data sets' own folders; none for their hub names.
        store: folder of all runs.
        seeds: in place of each workload's own; none for those.
        only: names of the only workloads to run; none for all.
        device: of every run; none for a GPU where there is one.
    """

    scale: Scale = "cpu"
    data: Path | None = None
    store: Path = Path("runs/paper/runs")
    seeds: tuple[int, ...] | None = None
    only: tuple[str, ...] | None = None
    device: str | None = None

    def place(self, folder: str, hub: str) -> str:
        """Returns where a data set is: its folder below ``data``, or its hub name."""
        return hub if self.data is None else str(self.data / folder)

    def file(self, name: str) -> str:
        """Returns the path of what a preparation writes."""
        return str(self.store / name)

    def chosen(self, workloads: Iterable[Workload]) -> list[Workload]:
        """Returns those of the workloads that ``only`` names."""
        return [w for w in workloads if self.only is None or w.name in self.only]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A task with its training settings.

    Args:
        name: to choose it by.
        title: to show it by.
        settings: keys of :class:`~nmstep.experiments.RunConfig`.
        seeds: one run of each recipe for each.
        options: of the recipes, by the recipe's name.
        patterns: that the workload is run with.
        summary: how the paper puts seeds together.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    patterns: tuple[str, ...] = ("2:4",)
    options: Mapping[str, RecipeOptions] = field(default_factory=dict)
    summary: Literal["mean", "median"] = "mean"

    def run(self, recipe: str, pattern: str | None = None, **changes: Any) -> RunConfig:
        """Returns one run; ``changes`` are keys of the configuration, options included."""
        options = self.options.get(recipe, RecipeOptions())
        settings = {"options": options, **self.settings, "recipe": recipe, "pattern": pattern, **changes}
        return RunConfig(**settings)

    def cell(
        self,
        row: str,
        recipe: str,
        pattern: str | None = None,
        *,
        column: str | None = None,
        paper: float | None = None,
        x: float | None = None,
        **changes: Any,
    ) -> Cell:
        """Returns a cell of this workload: as :meth:`run`, with its place in the table."""
        return Cell(
            row=row,
            column=column or (f"{self.title}, {pattern}" if pattern else self.title),
            config=self.run(recipe, pattern, **changes),
            seeds=self.seeds,
            paper=paper,
            x=x,
            summary=self.summary,
        )

    def option(self, recipe: str, **changes: Any) -> RecipeOptions:
        """Returns the recipe's options with some of them changed."""
        return replace(self.options.get(recipe, RecipeOptions()), **changes)
