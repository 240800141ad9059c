"""What ``nmstep reproduce`` does: calls the library for one study or all, and shows what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from nmstep.cli import commands
from nmstep.cli.console import output, say, say_error
from nmstep.cli.outcomes import interrupted, tell_failures, tell_warnings
from nmstep.cli.study_bars import StudyBars
from nmstep.experiments.paper import (
    STUDIES,
    Inventory,
    Scope,
    check_scope,
    reproduce,
    take_inventory,
    workload_names,
)
from nmstep.names import did_you_mean

__all__ = ["reproduce_paper"]

_EXPECTED = (ValueError, OSError, ArithmeticError, RuntimeError, ImportError)


def reproduce_paper(command: commands.Reproduce) -> int:
    """Does a study's runs, or all studies', and returns the exit status."""
    scope = Scope(
        scale=command.scale,
        data=command.data,
        seeds=command.seeds,
        only=command.only,
        device=command.device,
    )
    if command.jobs < 1:
        raise ValueError(f"jobs={command.jobs!r}: expected at least 1")
    out = command.out or Path("runs") / f"paper-{command.scale}"
    names = _names(command.name, scope)
    shown, status = [], 0
    for name in names:
        try:
            inventory = take_inventory(name, out, scope=scope)
            shown.append(inventory)
            ended = 0 if command.dry_run else _reproduce(inventory, out, scope, command)
        except _EXPECTED as error:  # data that are missing for one table are no reason not to do the others
            if len(names) == 1:
                raise
            say_error(RuntimeError(f"{name}: {error}"))
            ended = 1
        if ended == 130:
            return ended
        status = max(status, ended)
    if command.dry_run:
        _show(shown)
    return status


def _names(name: str, scope: Scope) -> list[str]:
    """Returns the studies to do; of all, those that have a chosen workload."""
    if name not in (*STUDIES, "all"):
        hint = did_you_mean(name, [*STUDIES, "all"])
        raise ValueError(f"there is no table or figure {name!r}: {hint}")
    if name != "all":
        check_scope(name, scope)
        return [name]
    check_scope(next(iter(STUDIES)), replace(scope, only=None))  # the seeds, before the first study
    if scope.only is None:
        return list(STUDIES)
    known = {study: workload_names(study, scope) for study in STUDIES}
    everywhere = list(dict.fromkeys(workload for names in known.values() for workload in names))
    for chosen in scope.only:
        if chosen not in everywhere:
            hint = did_you_mean(chosen, everywhere)
            raise ValueError(f"no table or figure has a workload {chosen!r} at scale {scope.scale}: {hint}")
    return [study for study, names in known.items() if set(names) & set(scope.only)]


def _reproduce(inventory: Inventory, out: Path, scope: Scope, command: commands.Reproduce) -> int:
    name = inventory.study.name
    if command.name == "all":
        say("")
    say(f"{name}: {inventory.study.title}")
    if inventory.states:
        say(f"{_counts(inventory)}, {command.jobs} at a time, in {inventory.folder}")
    try:
        with StudyBars(name, list(inventory.states)) as bars:
            done = reproduce(name, out, scope=scope, jobs=command.jobs, progress=bars)
    except KeyboardInterrupt:
        return interrupted(_spelled(command))
    tell_warnings(done.outcomes)
    _show_results(done.folder)
    return tell_failures(done.outcomes)


def _counts(inventory: Inventory) -> str:
    total, done, started = len(inventory.states), inventory.count("done"), inventory.count("started")
    more = f", {started} to go on with" if started else ""
    return f"{total} runs, {done} done{more}"


def _spelled(command: commands.Reproduce) -> str:
    """Returns the command line that the command came from."""
    words = ["nmstep", "reproduce", command.name, "--scale", command.scale]
    for flag in ("seeds", "only"):
        values = getattr(command, flag)
        words += [] if values is None else [f"--{flag}", *map(str, values)]
    for flag in ("data", "out", "device"):
        value = getattr(command, flag)
        words += [] if value is None else [f"--{flag}", str(value)]
    return shlex.join([*words, "--jobs", str(command.jobs)])


def _show_results(folder: Path) -> None:
    from nmstep.reports.paper import study_rows, write_study

    page = write_study(folder)
    for title, headers, rows in study_rows(folder):
        output.print(_results_table(title, headers, rows))
    say(f"Page: {page}")


def _results_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(escape(header), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _show(inventories: list[Inventory]) -> None:
    """Prints what the studies consist of and what of it is done; a single one cell by cell."""
    if len(inventories) > 1:
        output.print(_study_table(inventories))
        return
    (inventory,) = inventories
    output.print(_cell_table(inventory))
    say(f"{inventory.study.name}: {_counts(inventory)}, in {inventory.folder}")


def _cell_table(inventory: Inventory) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("where", "row", "seeds"):
        table.add_column(header, overflow="fold")
    table.add_column("done", justify="right")
    for item, state in inventory.before.items():
        table.add_row("first", escape(item), "", {"done": "1/1", "started": "begun"}.get(state, "0/1"))
    for cell in inventory.study.cells:
        states = inventory.of(cell)
        seeds = " ".join(map(str, cell.seeds))
        table.add_row(escape(cell.column), escape(cell.row), seeds, f"{states.count('done')}/{len(states)}")
    return table


def _study_table(inventories: list[Inventory]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("title", overflow="fold")
    for header in ("runs", "done", "to do"):
        table.add_column(header, justify="right")
    for inventory in inventories:
        total, done = len(inventory.states), inventory.count("done")
        table.add_row(
            inventory.study.name, escape(inventory.study.title), str(total), str(done), str(total - done)
        )
    states = {name: state for inventory in inventories for name, state in inventory.states.items()}
    done = sum(state == "done" for state in states.values())
    table.add_section()
    table.add_row("all", "each run once", str(len(states)), str(done), str(len(states) - done))
    return table
