"""Recipes × patterns × seeds on one task, each a run folder of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from nmstep.experiments.config import RunConfig, TrainingConfig
from nmstep.experiments.folder import check_folder
from nmstep.experiments.options import RECIPES, RecipeName
from nmstep.experiments.pool import Job, Outcome, PoolProgress, run_jobs
from nmstep.experiments.training import load_task, make_plan, recipe_of
from nmstep.files import write_json
from nmstep.names import did_you_mean
from nmstep.patterns import NMPattern

__all__ = ["CompareConfig", "Comparison", "check_jobs", "compare"]


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig):
    """A comparison: every recipe with every pattern and every seed.

    An option goes to the recipes that take it; one that none of them takes is an error. The dense recipe
    has no pattern and runs once for each seed.

    Args:
        recipes: how the masks are learned.
        patterns: N weights kept of every M, such as 2:4.
        seeds: one run for each.
        jobs: runs at a time.

    Raises:
        ValueError: as :class:`RunConfig`; or a list is empty or names something twice.

    Example:
        >>> config = CompareConfig(recipes=("dense", "step"), patterns=("2:4", "1:4"), seeds=(0, 1))
        >>> [name for name, _ in config.runs()]
        ['dense-s0', 'dense-s1', 'step-2x4-s0', 'step-2x4-s1', 'step-1x4-s0', 'step-1x4-s1']
    """

    recipes: tuple[RecipeName, ...] = ("dense", "asp", "sr-ste", "step")
    patterns: tuple[str, ...] = ("2:4",)
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    threads: int | None = 1

    def __post_init__(self) -> None:
        for recipe in self.recipes:
            if recipe not in RECIPES:
                raise ValueError(f"recipes: there is no {recipe!r}; {did_you_mean(str(recipe), RECIPES)}")
        super().__post_init__()
        patterns = tuple(str(NMPattern.parse(pattern)) for pattern in self.patterns)
        object.__setattr__(self, "patterns", patterns)
        if self.jobs < 1:
            raise ValueError(f"jobs={self.jobs!r}: expected at least 1")
        for name in ("recipes", "patterns", "seeds"):
            values = getattr(self, name)
            if not values and not (name == "patterns" and set(self.recipes) == {"dense"}):
                raise ValueError(f"{name} is empty: there is nothing to compare")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)}: something is in it twice")
        for option in self.options.given:
            if not any(option in self.options.only_for(recipe).given for recipe in self.recipes):
                raise ValueError(f"none of the recipes {', '.join(self.recipes)} takes the option {option!r}")
        for _ in self.runs():
            pass  # each checks itself

    def runs(self) -> Iterator[tuple[str, RunConfig]]:
        """Yields the name of each run's folder, and its configuration."""
        shared = {field.name: getattr(self, field.name) for field in fields(TrainingConfig)}
        for recipe in self.recipes:
            dense = recipe == "dense"
            settings = {**shared, "recipe": recipe, "options": self.options.only_for(recipe)}
            if dense:  # without a pattern there is nothing to say where it applies
                settings |= {"include": (), "exclude": ()}
            for pattern in (None,) if dense else self.patterns:
                for seed in self.seeds:
                    name = "-".join([recipe, *([pattern.replace(":", "x")] if pattern else []), f"s{seed}"])
                    yield name, RunConfig(**settings, pattern=pattern, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What :func:`compare` did.

    Args:
        folder: of the comparison.
        outcomes: how each run ended, by its folder's name, in the configuration's order.
    """

    folder: Path
    outcomes: dict[str, Outcome]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the runs that finished."""
        return tuple(self.folder / name for name, outcome in self.outcomes.items() if outcome.error is None)

    @property
    def failures(self) -> dict[str, Outcome]:
        """The runs that failed."""
        return {name: outcome for name, outcome in self.outcomes.items() if outcome.error is not None}

    @property
    def warnings(self) -> dict[str, list[str]]:
        """The distinct warnings, and the runs that gave each."""
        texts: dict[str, list[str]] = {}
        for name, outcome in self.outcomes.items():
            for text in outcome.warnings:
                texts.setdefault(text, []).append(name)
        return texts


def compare(
    config: CompareConfig, folder: str | os.PathLike[str], *, progress: PoolProgress | None = None
) -> Comparison:
    """Does all runs of a comparison that are not finished yet, and returns how each ended.

    Calling it again after an interruption goes on where it stopped. A folder may grow: runs that are there
    already are kept, if their configuration is that of the new comparison.

    Args:
        config: what to compare.
        folder: gets one run folder for each run, and ``compare.json``.
        progress: is told where the runs are.

    Raises:
        ValueError: the configuration does not fit the task or its model, or ``folder`` holds a run of
            the same name with another configuration. Nothing was run then.
        OSError: data cannot be read, or the folder cannot be written to.
    """
    folder = Path(folder)
    jobs = [Job(name=name, config=run, folder=folder / name) for name, run in config.runs()]
    check_jobs(jobs)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "compare.json", config.to_dict())
    outcomes = run_jobs(jobs, processes=config.jobs, progress=progress)
    return Comparison(folder=folder, outcomes={job.name: outcomes[job.name] for job in jobs})


def check_jobs(jobs: Sequence[Job]) -> None:
    """Raises what any of the runs, all of one task, would raise before its first step.

    Raises:
        ValueError: a configuration does not fit the task or its model, or its folder holds another one.
        OSError: data cannot be read.
    """
    task = load_task(jobs[0].config)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runs themselves give the warnings
        model = task.model()
        for job in jobs:
            resolved = job.config.resolve(task.defaults)
            check_folder(resolved, job.folder)
            recipe_of(resolved, make_plan(resolved, model))
