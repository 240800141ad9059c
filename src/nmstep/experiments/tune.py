"""Grid search over learning rate and batch size for one recipe, whose winner other recipes reuse."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nmstep.experiments.compare import check_jobs
from nmstep.experiments.config import RunConfig
from nmstep.experiments.options import RecipeName
from nmstep.experiments.pool import Job, Outcome, PoolProgress, run_jobs
from nmstep.experiments.training import load_task
from nmstep.experiments.tune_config import TuneConfig
from nmstep.files import write_json
from nmstep.tasks import TaskDefaults

__all__ = ["Point", "Tuning", "tune"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What the search found at one pair.

    Args:
        lr: peak learning rate.
        batch_size: examples a step.
        steps: optimizer steps of each run.
        values: the final metric of each run that finished, in the order of the seeds.
        failed: runs that did not finish, as those that diverged.
    """

    lr: float
    batch_size: int
    steps: int
    values: tuple[float, ...]
    failed: int

    @property
    def mean(self) -> float | None:
        """Mean final metric over the seeds; None where a run failed or ended at no finite number."""
        finite = all(map(math.isfinite, self.values))
        return None if self.failed or not finite else statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two, and where there is no mean."""
        return None if self.mean is None or len(self.values) < 2 else statistics.stdev(self.values)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What :func:`tune` did.

    Args:
        folder: of the search.
        metric: by which the winner was chosen.
        points: the grid, in order.
        winner: one of ``points``.
        config: the winner's run with the first seed.
        outcomes: how each run of the search ended, by its folder's name.
        then: the same of the runs that took the winner over, by recipe.
    """

    folder: Path
    metric: str
    points: tuple[Point, ...]
    winner: Point
    config: RunConfig
    outcomes: dict[str, Outcome]
    then: dict[str, dict[str, Outcome]]


def tune(
    config: TuneConfig, folder: str | os.PathLike[str], *, progress: PoolProgress | None = None
) -> Tuning:
    """Searches the grid, and runs the other recipes with the pair that won.

    The winner has the best mean final metric over all seeds; of equals the first. A pair of which a run
    failed, or ended at a metric that is not finite, loses. Calling it again after an interruption goes on
    where it stopped, and the grid of a folder may grow. ``tune.json`` gets the configuration, ``winner.json``
    the whole grid's numbers.

    Args:
        config: what to try.
        folder: gets one run folder for each run.
        progress: is told where the runs are.

    Raises:
        ValueError: the configuration does not fit the task or its model, or ``folder`` holds a run of the
            same name with another configuration; nothing was run then.
        RuntimeError: a run of every pair failed.
        OSError: data cannot be read, or the folder cannot be written to.

    Source:
        STEP, experiments: learning rate and batch size are searched for with the baseline, and STEP takes
        what is best for that over.
    Deviation:
        The paper fixes epochs. Here their like is the number of examples, since a run's length is given in
        steps.
    """
    folder = Path(folder)
    defaults = load_task(config.run(config.recipe, config.seeds[0])).defaults
    recipes = (config.recipe, *config.then)
    pairs = config.grid(defaults)
    jobs = {(r, pair): _jobs(config, r, pair, defaults, folder) for r in recipes for pair in pairs}
    check_jobs([job for group in jobs.values() for job in group])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tune.json", config.to_dict())
    search = [jobs[config.recipe, pair] for pair in pairs]
    outcomes = run_jobs([job for group in search for job in group], processes=config.jobs, progress=progress)
    metric, higher = _metric(outcomes)
    points = tuple(_point(group, outcomes, metric) for group in search)
    winner = _best(points, outcomes, higher=higher)
    (place,) = (i for i, point in enumerate(points) if point is winner)
    chosen = search[place][0].config
    write_json(folder / "winner.json", _to_dict(config, points, winner, chosen, metric))
    rest = {recipe: jobs[recipe, pairs[place]] for recipe in config.then}
    then = run_jobs(
        [job for group in rest.values() for job in group], processes=config.jobs, progress=progress
    )
    return Tuning(
        folder=folder,
        metric=metric,
        points=points,
        winner=winner,
        config=chosen,
        outcomes={job.name: outcomes[job.name] for group in search for job in group},
        then={recipe: {job.name: then[job.name] for job in group} for recipe, group in rest.items()},
    )


def _jobs(
    config: TuneConfig, recipe: RecipeName, pair: tuple[float, int], defaults: TaskDefaults, folder: Path
) -> list[Job]:
    runs = config.runs(recipe, *pair, defaults)
    return [Job(name=name, config=run, folder=folder / name) for name, run in runs]


def _metric(outcomes: Mapping[str, Outcome]) -> tuple[str, bool]:
    """Returns the task's metric, and whether more of it is better."""
    for outcome in outcomes.values():
        if outcome.result is not None:
            return str(outcome.result["metric"]), bool(outcome.result["higher_is_better"])
    raise RuntimeError(_nothing(outcomes))


def _nothing(outcomes: Mapping[str, Outcome]) -> str:
    errors = [f"{name}: {outcome.error}" for name, outcome in outcomes.items() if outcome.error]
    first = f"; the first: {errors[0]}" if errors else ""
    return f"no pair of learning rate and batch size ended at a finite number with every seed{first}"


def _point(group: list[Job], outcomes: Mapping[str, Outcome], metric: str) -> Point:
    results = [outcomes[job.name].result for job in group]
    values = tuple(float(result["final"][metric]) for result in results if result is not None)
    config = group[0].config
    assert config.lr is not None
    assert config.batch_size is not None
    assert config.steps is not None
    return Point(
        lr=config.lr,
        batch_size=config.batch_size,
        steps=config.steps,
        values=values,
        failed=len(group) - len(values),
    )


def _best(points: tuple[Point, ...], outcomes: Mapping[str, Outcome], *, higher: bool) -> Point:
    """Returns the first of the points with the best mean."""
    best, score = None, -math.inf
    for point in points:
        if point.mean is not None and (point.mean if higher else -point.mean) > score:
            best, score = point, point.mean if higher else -point.mean
    if best is None:
        raise RuntimeError(_nothing(outcomes))
    return best


def _to_dict(
    config: TuneConfig, points: tuple[Point, ...], winner: Point, chosen: RunConfig, metric: str
) -> dict[str, Any]:
    rows = [{**asdict(p), "values": _finite(p.values), "mean": p.mean, "std": p.std} for p in points]
    return {
        "recipe": config.recipe,
        "metric": metric,
        "lr": winner.lr,
        "batch_size": winner.batch_size,
        "steps": winner.steps,
        "mean": winner.mean,
        "std": winner.std,
        "seeds": list(config.seeds),
        "points": rows,
        "config": chosen.to_dict(),
    }


def _finite(values: tuple[float, ...]) -> list[float | None]:
    """Returns JSON values: there is no NaN in JSON."""
    return [value if math.isfinite(value) else None for value in values]
