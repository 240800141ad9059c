"""Doing what a table or figure is made of: preparations first, then every run that is not there yet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from nmstep.experiments.config import RunConfig
from nmstep.experiments.environment import environment
from nmstep.experiments.files import write_json
from nmstep.experiments.paper.catalogue import study
from nmstep.experiments.paper.preparations import measure_drift, search_layers
from nmstep.experiments.paper.study import Drift, LayerSearch, Study, run_name
from nmstep.experiments.paper.workloads import Scope
from nmstep.experiments.pool import Job, Outcome, PoolProgress, run_jobs
from nmstep.experiments.training import load_task

__all__ = ["Reproduction", "reproduce"]


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What :func:`reproduce` did.

    Args:
        study: the table or figure.
        folder: holds ``study.json``, beside the folder ``runs`` of all studies' runs.
        outcomes: how each run ended, by its folder's name.
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
    have in common, and another scale or setting never meets another's folder.

    Args:
        name: table1 … table5, fig1 … fig8, theorem1.
        out: of all studies of a scale; this one's page goes to ``out/name``.
        scope: scale, data, seeds; its ``store`` is ``out/runs``.
        jobs: runs at a time.
        progress: is told where the runs are.

    Raises:
        ValueError: there is no such study, or a run's folder holds another configuration; nothing was run.
        OSError: data are missing, or a folder cannot be written to.
    """
    folder = Path(out) / name
    scope = replace(scope or Scope(), store=Path(out) / "runs")
    found = study(name, scope)
    outcomes: dict[str, Outcome] = {}
    _load_each_task([config for config in (*found.before, *found.runs()) if isinstance(config, RunConfig)])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", {**found.to_dict(), "scale": scope.scale, "environment": environment()})
    for item in found.before:
        match item:
            case LayerSearch():
                search_layers(item, scope.store)
            case Drift():
                measure_drift(item, scope.store)
            case _:
                outcomes |= run_jobs([_job(item, scope.store)], processes=1, progress=progress)
                if outcomes[run_name(item)].error:
                    return Reproduction(study=found, folder=folder, outcomes=outcomes)
    todo = [_job(config, scope.store) for config in found.runs() if run_name(config) not in outcomes]
    outcomes |= run_jobs(todo, processes=jobs, progress=progress)
    return Reproduction(study=found, folder=folder, outcomes=outcomes)


def _job(config: RunConfig, store: Path) -> Job:
    name = run_name(config)
    return Job(name=name, config=config, folder=store / name)


def _load_each_task(configs: Iterable[RunConfig]) -> None:
    """Raises what a missing data set or a wrong option would, before the first run."""
    tried = set()
    for config in configs:
        key = (config.task, config.data, *sorted(config.task_options.items()))
        if key not in tried:
            tried.add(key)
            load_task(config)
