"""A benchmark's rows: measured, printed as a table with the bars beside them, and written as JSON."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from settings import Settings, parser, settings_of

from nmstep import kernels
from nmstep.experiments.environment import environment
from nmstep.files import write_json
from nmstep.timing import Timing

__all__ = ["Part", "Row", "alone", "head", "missed", "record", "row_of", "show", "take"]

_FACTS = ("torch", "nmstep", "python", "cpu", "threads", "kernels", "commit", "started")
_output, _errors = Console(highlight=False), Console(stderr=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Args:
        section: what the row shares with those around it.
        name: what was measured.
        value: the median.
        low: the end of the spread, without the extreme.
        high: the other end.
        bar: the value that it may not exceed, or None.
        ms: milliseconds of one call.
        other_ms: of what it is compared with.
        weights: of a single tensor, where the row belongs to a series over sizes.
        faster: whether the value says how many times as fast we are, and so the bar what it must not fall short of.
    """

    section: str
    name: str
    value: float
    low: float
    high: float
    bar: float | None = None
    ms: float | None = None
    other_ms: float | None = None
    weights: int | None = None
    faster: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the value keeps to the bar; None without one."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.faster else self.value <= self.bar


@dataclass(frozen=True, kw_only=True)
class Part:
    """One table.

    Args:
        name: in the record.
        title: above the table; says what is divided by what.
        measure: yields the rows, each when it is known.
        unit: above the column of values.
        rows: what was measured.
    """

    name: str
    title: str
    measure: Callable[[Settings], Iterator[Row]]
    unit: str = "ratio"
    rows: list[Row] = field(default_factory=list)


def row_of(
    timing: Timing, section: str, name: str, *, bar: float | None = None, weights: int | None = None
) -> Row:
    """Returns the row of two programs timed in turn."""
    return Row(
        section=section,
        name=name,
        value=timing.ratio,
        low=timing.low,
        high=timing.high,
        bar=bar,
        ms=timing.ms,
        other_ms=timing.other_ms,
        weights=weights,
    )


def alone(part: Part, description: str | None) -> None:
    """Runs one part as a program of its own."""
    arguments = parser(description).parse_args()
    settings = settings_of(arguments)
    facts = head(settings)
    take(part, settings)
    show(part)
    if arguments.json:
        write_json(arguments.json, record([part], facts))


def head(settings: Settings) -> dict[str, Any]:
    """Prints and returns where and how the benchmark runs; no path and no host's name is among it."""
    facts = {key: value for key, value in environment().items() if key in _FACTS}
    if settings.device.type == "cuda":
        facts["kernels"] = kernels.status().on_gpu
    facts["device"] = _device(settings.device)
    facts["load"] = round(os.getloadavg()[0], 2)
    facts["settings"] = {**asdict(settings), "device": settings.device.type}
    _output.print(
        f"{facts['device'] or facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"kernels: {facts['kernels']}, {settings.rounds} rounds"
    )
    if facts["load"] > 0.5:
        _errors.print(f"Load {facts['load']}: something else is running, so these figures will not hold.")
    return facts


def take(part: Part, settings: Settings) -> None:
    """Measures a part, and says on a terminal's stderr how far it is."""
    for row in part.measure(settings):
        part.rows.append(row)
        gc.collect()  # an optimizer and its sparsifier hold each other, and gigabytes
        if _errors.is_terminal:
            _errors.print(f"{part.name}: {row.section}, {row.name}: {_number(row.value)}", style="dim")


def show(part: Part) -> None:
    """Prints a part's table, for 80 columns."""
    if not part.rows:
        return
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=escape(part.title), title_justify="left"
    )
    table.add_column("", overflow="fold")
    for header in (part.unit, "spread", "bar", "met", "ms"):
        table.add_column(header, justify="right", no_wrap=True)
    timed = any(row.ms is not None for row in part.rows)
    table.columns[-1].header = "ms" if timed else ""
    section = None
    for row in part.rows:
        if row.section != section:
            table.add_section()
            table.add_row(escape(row.section), style="bold")
            section = row.section
        table.add_row(*_cells(row))
    _output.print(table)


def missed(parts: Sequence[Part]) -> None:
    """Prints how many bars were reached, and which were not."""
    rows = [(part, row) for part in parts for row in part.rows if row.bar is not None]
    late = [(part, row) for part, row in rows if not row.reached]
    _output.print(f"{len(rows) - len(late)} of {len(rows)} bars reached.")
    for part, row in late:
        text = f"{part.name}: {row.section}, {row.name}: {_number(row.value)}, bar {row.bar:g}"
        _output.print(f"  not reached  {text}", style="red", soft_wrap=True)


def record(parts: Sequence[Part], facts: dict[str, Any]) -> dict[str, Any]:
    """Returns all that was measured, as JSON values."""
    described = {
        part.name: {
            "title": part.title,
            "unit": part.unit,
            "rows": [{**asdict(row), "reached": row.reached} for row in part.rows],
        }
        for part in parts
        if part.rows
    }
    return {**facts, "parts": described}


def _cells(row: Row) -> list[str]:
    reached = {True: "[green]yes[/green]", False: "[red]NO[/red]", None: ""}[row.reached]
    return [
        "  " + escape(row.name),
        _number(row.value),
        f"{_number(row.low)} … {_number(row.high)}",
        "" if row.bar is None else f"{row.bar:g}",
        reached,
        "" if row.ms is None else f"{row.ms:.3f}" if row.ms < 10 else f"{row.ms:.1f}",
    ]


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _device(device: torch.device) -> str | None:
    """Returns the name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
