"""Doing what a table or figure is made of: preparations first, then every run that is not there yet."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from nmstep.experiments.config import RunConfig
from nmstep.experiments.environment import environment
from nmstep.experiments.folder import check_folder, check_same
from nmstep.experiments.paper.catalogue import study
from nmstep.experiments.paper.inventory import check_scope
from nmstep.experiments.paper.preparations import measure_drift, search_layers
from nmstep.experiments.paper.study import Drift, LayerSearch, Preparation, Study, run_name
from nmstep.experiments.paper.workloads import Scope
from nmstep.experiments.pool import Job, Outcome, PoolProgress, run_jobs
from nmstep.experiments.training import load_task
from nmstep.files import read_json, write_json
from nmstep.tasks import TaskDefaults

__all__ = ["Reproduction", "reproduce"]


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What :func:`reproduce` did.

    Args:
        study: the table or figure.
        folder: holds ``study.json``, beside the folder ``runs`` of all studies' runs.
        outcomes: how each run ended, by its folder's name, and each other preparation, which has no result,
            by its file's.
    """

    study: Study
    folder: Path
    outcomes: dict[str, Outcome]


def reproduce(
    name: str,
    out: str | os.PathLike[str],
    *,
    scope: Scope | None = None,
    jobs: int = 1,
    progress: PoolProgress | None = None,
) -> Reproduction:
    """Does the runs of one table or figure of the paper that are not finished yet.

    Runs are kept in ``out/runs`` under names made of their configuration, so that studies share what they
    have in common, and another scale or setting never meets another's folder. One that fails does not stop
    the others, except those that need what it should have left behind.

    Args:
        name: table1 … table5, fig1 … fig8, theorem1.
        out: of all studies of a scale; this one's page goes to ``out/name``.
        scope: scale, data, seeds; its ``store`` is ``out/runs``.
        jobs: runs at a time.
        progress: is told where the runs are.

    Raises:
        ValueError: there is no such study, ``scope.only`` does not fit it, ``jobs`` is below 1, or what is
            there of a run or a measurement is of another configuration; nothing was run.
        OSError: data are missing, or a folder cannot be written to.
    """
    folder = Path(out) / name
    if jobs < 1:
        raise ValueError(f"jobs={jobs!r}: expected at least 1")
    scope = replace(scope or Scope(), store=Path(out) / "runs")
    check_scope(name, scope)
    found = study(name, scope)
    _check(found, scope.store)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", {**found.to_dict(), "scale": scope.scale, "environment": environment()})
    outcomes: dict[str, Outcome] = {}
    for item in found.before:
        outcomes |= _prepare(item, scope.store, outcomes, progress)
    jobs_of = {run_name(config): _job(config, scope.store) for config in found.runs()}
    for run, job in jobs_of.items():
        settled = _settled(job, outcomes) if run not in outcomes else None
        if settled is not None:
            outcomes[run] = settled
            if progress is not None:
                progress.ended(run, settled)
    todo = [job for run, job in jobs_of.items() if run not in outcomes]
    outcomes |= run_jobs(todo, processes=jobs, progress=progress)
    return Reproduction(study=found, folder=folder, outcomes=outcomes)


def _prepare(
    item: Preparation, store: Path, outcomes: dict[str, Outcome], progress: PoolProgress | None
) -> dict[str, Outcome]:
    """Returns how a preparation ended, by its name."""
    if isinstance(item, RunConfig):
        return run_jobs([_job(item, store)], processes=1, progress=progress)
    needed = outcomes.get(run_name(item.config))
    if (store / item.file).exists():
        outcome = Outcome()
    elif isinstance(item, LayerSearch) and needed is not None and needed.error is not None:
        outcome = Outcome(error=f"not done, since {run_name(item.config)} failed")
    else:
        if progress is not None:
            progress.started(item.file, 1, 0)
        outcome = _attempt(item, store)
    if progress is not None:
        progress.ended(item.file, outcome)
    return {item.file: outcome}


def _attempt(item: LayerSearch | Drift, store: Path) -> Outcome:
    error, details = None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if isinstance(item, Drift):
                measure_drift(item, store)
            else:
                search_layers(item, store)
        except (ValueError, OSError, ArithmeticError, RuntimeError) as problem:
            error, details = str(problem), traceback.format_exc()
    texts = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return Outcome(error=error, details=details, warnings=texts)


def _settled(job: Job, outcomes: dict[str, Outcome]) -> Outcome | None:
    """Returns how a run ended that is finished, or that lacks what a failed preparation should have left it.

    Its folder is known to be of its configuration, so the data need not be read once more to see that.
    """
    if (job.folder / "result.json").exists():
        return Outcome(result=read_json(job.folder / "result.json"))
    for needed in (job.config.init, job.config.plan_file):
        before = None if needed is None else outcomes.get(Path(needed).name)
        if needed is not None and before is not None and before.error is not None:
            return Outcome(error=f"not run, since {Path(needed).name} failed")
    return None


def _job(config: RunConfig, store: Path) -> Job:
    name = run_name(config)
    return Job(name=name, config=config, folder=store / name)


def _check(found: Study, store: Path) -> None:
    """Raises what missing data, a wrong option or results of another configuration would, before the first run."""
    defaults: dict[tuple[object, ...], TaskDefaults] = {}

    def resolved(config: RunConfig) -> RunConfig:
        key = (config.task, config.data, *sorted(config.task_options.items()))
        if key not in defaults:
            defaults[key] = load_task(config).defaults
        return config.resolve(defaults[key])

    for config in _configs(found):
        check_folder(resolved(config), store / run_name(config))
    for item in found.before:
        if isinstance(item, Drift) and (store / item.file).exists():
            path = store / item.file
            check_same(resolved(item.config), read_json(path).get("config", {}), path, what="a measurement")


def _configs(found: Study) -> Iterable[RunConfig]:
    for item in found.before:
        yield item if isinstance(item, RunConfig) else item.config
    yield from found.runs()
