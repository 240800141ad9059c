"""A study's folder read back: what was to be run, and what is there of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nmstep.reports.groups import Group
from nmstep.reports.runs import Run, load_runs

__all__ = ["CellRuns", "CurveGroup", "StudyRuns", "load_study", "reload"]

_STUDY_KEYS = ("name", "title", "claim", "view", "cells")
_CELL_KEYS = ("row", "column", "task", "recipe", "seeds", "runs")


@dataclass(frozen=True, kw_only=True)
class CurveGroup(Group):
    """The runs of one cell, named by their row."""

    @property
    def label(self) -> str:
        """The row's name."""
        return self.variant


@dataclass(frozen=True, kw_only=True)
class CellRuns:
    """One cell of a study with its runs.

    Args:
        row: what is compared.
        column: where.
        task: name of the workload.
        recipe: name of the recipe.
        pattern: the pattern's text, or None.
        seeds: planned.
        names: of the runs' folders, one for each seed.
        runs: one for each seed, without the records of steps and layers; None where there is no folder yet.
        paper: the paper's value, where known.
        x: place on a horizontal axis, for a figure that has one.
        summary: how the seeds are put together.
    """

    row: str
    column: str
    task: str
    recipe: str
    pattern: str | None
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    runs: tuple[Run | None, ...]
    paper: float | None = None
    x: float | None = None
    summary: Literal["mean", "median"] = "mean"

    @property
    def finished(self) -> dict[int, Run]:
        """The runs with a result, by seed."""
        return {s: r for s, r in zip(self.seeds, self.runs, strict=True) if r is not None and r.finished}

    @property
    def drawn(self) -> tuple[Run, ...]:
        """The runs that curves average over: the finished ones, or all while none is."""
        return tuple(self.finished.values()) or tuple(run for run in self.runs if run is not None)

    @property
    def group(self) -> CurveGroup:
        """The runs as the plots of :mod:`nmstep.reports.plots` take them."""
        runs = self.drawn
        return CurveGroup(
            task=self.task, recipe=self.recipe, pattern=self.pattern, variant=self.row, runs=runs
        )


@dataclass(frozen=True, kw_only=True)
class StudyRuns:
    """A study with its runs.

    Args:
        folder: holds ``study.json``.
        name: as ``nmstep reproduce`` knows it.
        title: one line.
        claim: what the paper says of it.
        view: how it is shown.
        cells: what it is made of.
        notes: facts that a reader of the numbers needs.
        facts: JSON values that were computed, not run.
        files: what else was written beside the runs, such as measurements.
        scale: cpu or full.
        environment: where it was started.
    """

    folder: Path
    name: str
    title: str
    claim: str
    view: str
    cells: tuple[CellRuns, ...]
    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    files: tuple[Path, ...]
    scale: str
    environment: Mapping[str, Any]

    @property
    def columns(self) -> dict[str, list[CellRuns]]:
        """The cells by column, in the study's order."""
        found: dict[str, list[CellRuns]] = {}
        for cell in self.cells:
            found.setdefault(cell.column, []).append(cell)
        return found

    @property
    def runs(self) -> list[Run]:
        """Every run that has a folder, once."""
        return list({run.path: run for cell in self.cells for run in cell.runs if run is not None}.values())

    @property
    def planned(self) -> int:
        """How many runs there are to be, each counted once."""
        return len({name for cell in self.cells for name in cell.names})

    @property
    def done(self) -> int:
        """How many of them have a result."""
        return sum(run.finished for run in self.runs)


def load_study(folder: str | os.PathLike[str]) -> StudyRuns:
    """Returns a study and the runs that are there of it.

    Args:
        folder: holds ``study.json``, beside the folder ``runs`` of all studies' runs.

    Raises:
        FileNotFoundError: there is no ``study.json``.
        ValueError: it, or a file of a run, is malformed; the message names it.
    """
    folder = Path(folder)
    path = folder / "study.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{os.fspath(folder)!r} holds no study.json: give the folder of one table or figure below what "
            f"'nmstep reproduce' was told to write to"
        )
    values = _read(path)
    store = folder.parent / "runs"
    known: dict[str, Run | None] = {}
    return StudyRuns(
        folder=folder,
        **{key: str(values[key]) for key in _STUDY_KEYS[:-1]},
        cells=tuple(_cell(cell, store, known, path) for cell in values["cells"]),
        notes=tuple(values.get("notes", ())),
        facts=values.get("facts", {}),
        files=tuple(store / name for name in values.get("files", ())),
        scale=str(values.get("scale", "")),
        environment=values.get("environment", {}),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    _check_keys(values, _STUDY_KEYS, str(path))
    if not isinstance(values["cells"], list):
        raise ValueError(f"{path}: expected a list as cells, found {type(values['cells']).__name__}")
    return dict(values)


def _check_keys(values: Any, keys: tuple[str, ...], where: str) -> None:
    missing = [key for key in keys if not isinstance(values, dict) or key not in values]
    if missing:
        raise ValueError(f"{where}: expected a JSON object with {', '.join(keys)}; {missing[0]} is missing")


def _cell(values: dict[str, Any], store: Path, known: dict[str, Run | None], path: Path) -> CellRuns:
    _check_keys(values, _CELL_KEYS, f"{path}, a cell")
    names = [str(name) for name in values["runs"]]
    if len(names) != len(values["seeds"]):
        raise ValueError(f"{path}: {values['row']}, {values['column']} has {len(names)} runs for its seeds")
    for name in names:
        if name not in known:
            known[name] = _light(store / name)
    return CellRuns(
        row=str(values["row"]),
        column=str(values["column"]),
        task=str(values["task"]),
        recipe=str(values["recipe"]),
        pattern=values.get("pattern"),
        seeds=tuple(values["seeds"]),
        names=tuple(names),
        runs=tuple(known[name] for name in names),
        paper=values.get("paper"),
        x=values.get("x"),
        summary=values.get("summary", "mean"),
    )


def _light(path: Path) -> Run | None:
    """Returns a run without its long records, since a study may hold hundreds; None if it has not begun."""
    if not (path / "config.json").exists():
        return None
    return replace(load_runs(path)[0], steps=(), layers=())


def reload(run: Run) -> Run:
    """Returns the run with the records of all its steps."""
    return load_runs(run.path)[0]
