"""What of a study is there already, and which workloads it can be cut down to."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nmstep.experiments.config import RunConfig
from nmstep.experiments.paper.catalogue import STUDIES, study
from nmstep.experiments.paper.images import images
from nmstep.experiments.paper.language import glue, masked_language_model, wikitext
from nmstep.experiments.paper.study import Cell, Study, run_name
from nmstep.experiments.paper.translation import translation
from nmstep.experiments.paper.workloads import Scope, Workload
from nmstep.names import did_you_mean

__all__ = ["Inventory", "State", "check_scope", "take_inventory", "workload_names"]

State = Literal["done", "started", "missing"]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What of a study is done.

    Args:
        study: the table or figure.
        folder: of all runs.
        before: of each preparation, by its run's or its file's name, in order.
        runs: of each run of the cells that is no preparation, in the order in which they are done.
    """

    study: Study
    folder: Path
    before: dict[str, State]
    runs: dict[str, State]

    @property
    def states(self) -> dict[str, State]:
        """Of everything, preparations first."""
        return {**self.before, **self.runs}

    def count(self, state: State) -> int:
        """Returns how many runs and preparations are in a state."""
        return sum(other == state for other in self.states.values())

    def of(self, cell: Cell) -> tuple[State, ...]:
        """Returns the state of each run of a cell, seed by seed."""
        states = self.states
        return tuple(states[run_name(config)] for config in cell.configs)


def take_inventory(name: str, out: str | os.PathLike[str], *, scope: Scope | None = None) -> Inventory:
    """Returns what a table or figure consists of, and what of it is there; runs and writes nothing.

    Args:
        name: a key of ``STUDIES``.
        out: as :func:`~nmstep.experiments.paper.reproduce` takes it.
        scope: scale, data, seeds; its ``store`` is ``out/runs``.

    Raises:
        ValueError: there is no such study, or ``scope.only`` does not fit it.

    Example:
        >>> inventory = take_inventory("fig2", "nowhere", scope=Scope(only=("digits",), seeds=(0,)))
        >>> inventory.count("done"), inventory.count("missing")
        (0, 5)
    """
    scope = replace(scope or Scope(), store=Path(out) / "runs")
    check_scope(name, scope)
    found = study(name, scope)
    before = {}
    for item in found.before:
        if isinstance(item, RunConfig):
            before[run_name(item)] = _state(scope.store / run_name(item))
        else:
            before[item.file] = _done_if((scope.store / item.file).exists())
    names = [run_name(config) for config in found.runs()]
    runs = {run: _state(scope.store / run) for run in names if run not in before}
    return Inventory(study=found, folder=scope.store, before=before, runs=runs)


def _state(folder: Path) -> State:
    if (folder / "config.json").exists() and not (folder / "result.json").exists():
        return "started"
    return _done_if((folder / "result.json").exists())


def _done_if(done: bool) -> State:
    return "done" if done else "missing"


def workload_names(name: str, scope: Scope) -> tuple[str, ...]:
    """Returns the workloads that a study has at a scale, by the names that ``scope.only`` knows.

    Args:
        name: a key of ``STUDIES``.
        scope: its ``only`` is left aside.

    Example:
        >>> workload_names("fig4", Scope())
        ('cifar10-resnet20',)
    """
    if _size(name, scope, ()):  # it has none to choose from
        return ()
    known = dict.fromkeys(workload.name for workload in _workloads(replace(scope, only=None)))
    return tuple(workload for workload in known if _size(name, scope, (workload,)))


def check_scope(name: str, scope: Scope) -> None:
    """Raises what is wrong with a choice of study and scope.

    Raises:
        ValueError: there is no such study, or the scope's seeds or workloads do not fit it.
        FileNotFoundError: there is no such folder of data.
    """
    if name not in STUDIES:
        raise ValueError(f"there is no table or figure {name!r}: {did_you_mean(name, STUDIES)}")
    if scope.seeds is not None and (not scope.seeds or len(set(scope.seeds)) < len(scope.seeds)):
        problem = "something is in it twice" if scope.seeds else "there is nothing to run"
        raise ValueError(f"seeds={list(scope.seeds)}: {problem}")
    if scope.data is not None and not scope.data.is_dir():
        raise FileNotFoundError(
            f"no folder {str(scope.data)!r}: give as data the folder that holds the data sets' own folders"
        )
    if scope.only is None:
        return
    known = workload_names(name, scope)
    if not known:
        raise ValueError(f"{name} has no workloads to choose from: leave out only={list(scope.only)}")
    for chosen in scope.only:
        if chosen not in known:
            hint = did_you_mean(chosen, known)
            rest = "" if hint.startswith("choose") else f" It has {', '.join(known)}"
            raise ValueError(f"{name} at scale {scope.scale} has no workload {chosen!r}: {hint}{rest}")


def _size(name: str, scope: Scope, only: tuple[str, ...]) -> int:
    found = STUDIES[name](replace(scope, only=only))
    return len(found.cells) + len(found.before)


def _workloads(scope: Scope) -> list[Workload]:
    fine_tuned = [workload for workload, _ in wikitext(scope)]
    return [*images(scope), *glue(scope), *fine_tuned, *masked_language_model(scope), translation(scope)]
