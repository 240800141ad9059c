"""What a grid search is: a baseline, learning rates, batch sizes, and who reuses what wins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from nmstep.experiments.config import RunConfig, TrainingConfig
from nmstep.experiments.options import RECIPES, RecipeName
from nmstep.names import did_you_mean
from nmstep.patterns import NMPattern
from nmstep.tasks import TaskDefaults

__all__ = ["TuneConfig"]


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TrainingConfig):
    """A grid search: one recipe with every learning rate, batch size and seed.

    All runs see equally many examples, as they do where epochs are fixed: ``steps`` and ``warmup`` count
    optimizer steps at the task's own batch size, and another batch size gets so many more or fewer. Spans
    among the options that are steps rather than shares stay as they are.

    Args:
        recipe: the baseline, for which is searched.
        pattern: N weights kept of every M, such as 2:4; of no use if every recipe is dense.
        lrs: learning rates to try.
        batch_sizes: batch sizes to try; none for the task's own.
        seeds: one run of every pair for each.
        then: recipes that run with the pair that won.
        jobs: runs at a time.

    Raises:
        ValueError: as :class:`RunConfig`; a list is empty or names something twice; ``lr`` or ``batch_size``
            is given; or ``then`` names the baseline.

    Example:
        >>> config = TuneConfig(lrs=(1e-3, 1e-4), batch_sizes=(32, 64), pattern="2:4", seeds=(0,))
        >>> TuneConfig(lr=1e-3)
        Traceback (most recent call last):
            ...
        ValueError: lr=0.001: the search chooses it; give the values to try as lrs
    """

    recipe: RecipeName = "dense"
    pattern: str | None = None
    lrs: tuple[float, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    then: tuple[RecipeName, ...] = ("step",)
    jobs: int = 1
    threads: int | None = 1

    def __post_init__(self) -> None:
        for recipe in (self.recipe, *self.then):
            if recipe not in RECIPES:
                raise ValueError(f"there is no recipe {recipe!r}; {did_you_mean(str(recipe), RECIPES)}")
        super().__post_init__()
        if self.pattern is not None:
            object.__setattr__(self, "pattern", str(NMPattern.parse(self.pattern)))
        if self.jobs < 1:
            raise ValueError(f"jobs={self.jobs!r}: expected at least 1")
        self._check_grid()
        if self.recipe in self.then:
            raise ValueError(f"then={list(self.then)}: {self.recipe!r} is the baseline and runs anyway")
        recipes = (self.recipe, *self.then)
        for option in self.options.given:
            if not any(option in self.options.only_for(recipe).given for recipe in recipes):
                raise ValueError(f"none of the recipes {', '.join(recipes)} takes the option {option!r}")
        for recipe in recipes:  # each checks itself
            self.run(recipe, self.seeds[0], lr=self.lrs[0], batch_size=None, steps=self.steps)

    def _check_grid(self) -> None:
        for name in ("lr", "batch_size"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: the search chooses it; give the values to try as "
                    f"{'lrs' if name == 'lr' else 'batch_sizes'}"
                )
        if not self.lrs:
            raise ValueError("lrs is empty: give the learning rates to try, such as 1e-4, 5e-5 and 1e-5")
        if not self.seeds:
            raise ValueError("seeds is empty: there is nothing to run")
        for name, least in (("lrs", None), ("batch_sizes", 1), ("seeds", 0), ("then", None)):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)}: something is in it twice")
            if least is not None and any(value < least for value in values):
                raise ValueError(f"{name}={list(values)}: expected at least {least} of each")
        if not all(0 < lr < math.inf for lr in self.lrs):
            raise ValueError(f"lrs={list(self.lrs)}: expected numbers above 0")

    def grid(self, defaults: TaskDefaults) -> tuple[tuple[float, int], ...]:
        """Returns every pair of learning rate and batch size, in the order in which ties are decided.

        Args:
            defaults: of the task.
        """
        return tuple((lr, size) for lr in self.lrs for size in self.batch_sizes or (defaults.batch_size,))

    def runs(
        self, recipe: RecipeName, lr: float, batch_size: int, defaults: TaskDefaults
    ) -> Iterator[tuple[str, RunConfig]]:
        """Yields the name of the folder of each seed's run, and its configuration.

        Args:
            recipe: the baseline, or another that takes the winner over.
            lr: peak learning rate.
            batch_size: examples a step.
            defaults: of the task; its batch size is the one for which ``steps`` and ``warmup`` are meant.

        Example:
            >>> from nmstep.tasks import TaskDefaults
            >>> defaults = TaskDefaults(steps=600, batch_size=64, lr=1e-3, weight_decay=0.0)
            >>> config = TuneConfig(lrs=(1e-3,), pattern="2:4", seeds=(0, 1))
            >>> [(name, run.steps) for name, run in config.runs("step", 1e-3, 32, defaults)]
            [('step-2x4-lr0.001-b32-s0', 1200), ('step-2x4-lr0.001-b32-s1', 1200)]
        """
        share = defaults.batch_size / batch_size
        warmup = defaults.warmup if self.warmup is None else self.warmup
        lengths: dict[str, Any] = {
            "steps": max(1, round(share * (self.steps or defaults.steps))),
            "warmup": round(share * warmup),
        }
        pattern = [self.pattern.replace(":", "x")] if self.pattern and recipe != "dense" else []
        for seed in self.seeds:
            name = "-".join([recipe, *pattern, f"lr{lr!r}", f"b{batch_size}", f"s{seed}"])
            yield name, self.run(recipe, seed, lr=lr, batch_size=batch_size, **lengths)

    def run(self, recipe: RecipeName, seed: int, **settings: Any) -> RunConfig:
        """Returns one run; ``settings`` are keys of its configuration that differ."""
        shared = {field.name: getattr(self, field.name) for field in fields(TrainingConfig)}
        shared |= {"options": self.options.only_for(recipe), "pattern": self.pattern}
        if recipe == "dense":  # without a pattern there is nothing to say where it applies
            shared |= {"include": (), "exclude": (), "pattern": None}
        return RunConfig(**{**shared, **settings}, recipe=recipe, seed=seed)
