"""Plans and results as rich tables for 80 columns."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nmstep.cli.dotted import Dotted
from nmstep.deploy import PackedFile
from nmstep.plan import SparsityPlan
from nmstep.switching.reasons import reason_text
from nmstep.verify import VerifyReport

__all__ = ["counts", "int8_line", "packed_size", "packed_table", "plan_table", "result_line", "summary"]
__all__ += ["verify_table"]


def plan_table(plan: SparsityPlan) -> Group:
    """Returns every parameter of a plan with its pattern, or the reason why it stays dense."""
    kept, total = sum(entry.kept for entry in plan.entries), sum(entry.numel for entry in plan.entries)
    table = _table("parameter", "shape", "layer", "pattern", "dim", "why", right=("dim",))
    for entry in plan.entries:
        table.add_row(
            Dotted(" = ".join((entry.name, *entry.aliases))),
            "x".join(map(str, entry.shape)),
            entry.kind,
            "dense" if entry.pattern is None else str(entry.pattern),
            "" if entry.dim is None else str(entry.dim),
            escape(entry.reason),
            style=None if entry.pattern is not None else "dim",
        )
    return _summed(
        table,
        f"{len(plan.sparse)} of {len(plan.entries)} parameters sparse; "
        f"{kept:,} of {total:,} weights kept ({plan.density:.1%})",
    )


def verify_table(report: VerifyReport) -> Group:
    """Returns what was found about each tensor; vectors that may be dense are left out."""
    planned = [tensor for tensor in report.tensors if tensor.status != "dense"]
    comply = sum(not tensor.failed for tensor in planned)
    right = ("dim", "groups", "comply")
    table = _table("tensor", "shape", "pattern", *right, "status", right=right)
    for tensor in report.tensors:
        dense = tensor.status == "dense"
        if dense and len(tensor.shape) < 2:
            continue
        table.add_row(
            Dotted(tensor.name),
            "x".join(map(str, tensor.shape)),
            "-" if tensor.pattern is None else str(tensor.pattern),
            "-" if tensor.dim is None else str(tensor.dim),
            "-" if dense else f"{tensor.groups:,}",
            "-" if dense else f"{math.floor(1000 * tensor.share) / 10:.1f} %",  # never 100 % if one fails
            tensor.status,
            style="red" if tensor.failed else "dim" if dense else None,
        )
    return _summed(
        table,
        f"{report.target} is {'' if report.ok else 'NOT '}N:M: {comply} of {len(planned)} tensors comply, "
        f"{len(report.tensors) - len(planned)} are dense",
    )


def packed_table(packed: PackedFile) -> Group:
    """Returns what was packed, and how large the file is beside a dense one."""
    table = _table("layer", "shape", "pattern")
    for name, layer in packed.layers.items():
        table.add_row(Dotted(name), "x".join(map(str, layer.shape)), str(layer.pattern))
    left = ", ".join(packed.left[:5]) + (f" and {len(packed.left) - 5} more" if len(packed.left) > 5 else "")
    return _summed(
        table,
        f"{packed_size(packed)}; {len(packed.layers)} weight{'s' if len(packed.layers) > 1 else ''} packed"
        + (f"; sparse, and left dense: {left}" if left else ""),
    )


def _table(*headers: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return table


def _summed(table: Table, text: str) -> Group:
    """Returns a table and a sentence below it, which is as wide as the terminal, as a caption would not be."""
    return Group(table, Text(text))


def counts(patterns: Iterable[str]) -> str:
    """Returns how many weights have each pattern.

    Example:
        >>> counts(["2:4", "1:8", "2:4"])
        '2 weights 2:4, 1 weight 1:8'
    """
    found = Counter(patterns)
    return ", ".join(f"{count} weight{'s' if count > 1 else ''} {text}" for text, count in found.items())


def packed_size(packed: PackedFile) -> str:
    """Returns how large a packed file is beside a dense one."""
    share = packed.packed / max(1, packed.dense)
    return f"{decimal(packed.packed)} instead of {decimal(packed.dense)} ({share:.1%})"


def int8_line(packed: PackedFile) -> str:
    """Returns how many weights became int8, and what rounding changed."""
    errors = {name: layer.error or 0.0 for name, layer in packed.layers.items()}
    worst = max(errors, key=lambda name: errors[name])
    count = f"{len(errors)} weight{'s' if len(errors) > 1 else ''}"
    return f"int8: {count}, rounding changed none by more than {errors[worst]:.2%} ({worst})"


def result_line(result: Mapping[str, Any]) -> str:
    """Returns what a run came to, in one line."""
    metric = result["metric"]
    parts = [f"{metric} {_value(metric, result['final'][metric])}", f"loss {result['final']['loss']:.4g}"]
    if result["switch_step"] is not None:
        parts.append(f"masks from step {result['switch_step']} ({reason_text(result['switch_reason'])})")
    if result["verified"] is not None:
        parts.append(f"N:M {'verified' if result['verified'] else 'NOT verified'}")
    parts.append(f"{result['density']:.1%} of weights kept")
    return f"{result['steps']} steps in {result['seconds']:.0f} s: {', '.join(parts)}"


def summary(folder: str | os.PathLike[str]) -> Table | Text:
    """Returns the results of the runs in a folder, as mean ± sample standard deviation over seeds."""
    from nmstep.reports import summary_table

    rows = summary_table(folder)
    if not rows:
        return Text("No run is finished yet.")
    metrics = " / ".join(dict.fromkeys(row["metric"] for row in rows))
    several_tasks = len({row["task"] for row in rows}) > 1
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    if several_tasks:
        table.add_column("task")
    table.add_column("recipe", overflow="fold")
    table.add_column("pattern")
    for header in (f"{metrics}{' %' if metrics == 'accuracy' else ''}", "test loss"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("switch at", "seeds"):
        table.add_column(header, justify="right")
    table.add_column("N:M")
    for row in rows:
        name = " ".join(filter(None, (row["recipe"], row.get("variant"))))
        cells = [
            escape(name),
            row["pattern"] or "-",
            _spread(row["mean"], row["std"], _format(row["metric"])),
            _spread(row["loss_mean"], row["loss_std"], ".4f"),
            "-" if row["switch_step_mean"] is None else f"{row['switch_step_mean']:.0f}",
            str(row["n"]),
            {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "-"}[row["verified"]],
        ]
        table.add_row(*([row["task"]] if several_tasks else []), *cells)
    return table


def _spread(mean: float, std: float | None, form: str) -> str:
    return f"{mean:{form}}" if std is None else f"{mean:{form}} ± {std:{form}}"


def _format(metric: str) -> str:
    return ".2f" if metric == "accuracy" else ".3f"


def _value(metric: str, value: float) -> str:
    return f"{value:.2f} %" if metric == "accuracy" else f"{value:.3f}"
