"""The figures of a benchmark run as one picture: cost over sizes, and every ratio with its bar.

python benchmarks/plot.py docs/results/training_step.json docs/results/training_step.png
"""

from __future__ import annotations

import argparse
import io
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nmstep.files import read_json, write_atomically
from nmstep.reports.plots.style import INK, tidy

__all__ = ["draw"]

REACHED, MISSED, PLAIN = "#0072B2", "#D55E00", "#8a8a8a"
LINES = {  # colour and marker of each program in the upper panel
    "torch fused": (INK, "o"),
    "torch foreach": ("#8a8a8a", "v"),
    "torch for-loop": ("#8a8a8a", "^"),
    "dense, AutoSwitch": ("#56B4E9", "D"),
    "STEP, 2:4": ("#0072B2", "o"),
    "STEP, 1:16": ("#0072B2", "s"),
    "SR-STE, 2:4": ("#D55E00", "s"),
    "SR-STE, 2:4, as published": ("#CC79A7", "X"),
    "ASP, 2:4, as published": ("#E69F00", "P"),
}
PANELS = ("training_step", "iteration", "mask", "memory")


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws a record of benchmarks.

    Args:
        record: as :func:`record.record` returns it; parts that it lacks are left out.
        path: of the PNG file.
    """
    parts = record["parts"]
    shown = {name: rows for name in PANELS if name in parts and (rows := _rows(parts[name], name))}
    heights = [4.6] * ("sizes" in parts) + [0.7 + 0.2 * len(rows) for rows in shown.values()]
    if not heights:
        return
    figure = Figure(figsize=(9.6, sum(heights) + 0.6), dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if "sizes" in parts:
        _draw_sizes(panels.pop(0), parts["sizes"]["rows"])
    for axes, (name, rows) in zip(panels, shown.items(), strict=True):
        _draw_bars(axes, parts[name]["title"], rows)
    _explain(figure)
    figure.suptitle(_place(record), fontsize=9, color=INK, x=0.01, ha="left")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


def _draw_sizes(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draws milliseconds over weights, both logarithmic, so that linear cost is a line of slope 1."""
    series = [row for row in rows if row["weights"]]
    sizes = sorted({row["weights"] for row in series})
    fused = [statistics.median(row["other_ms"] for row in series if row["weights"] == n) for n in sizes]
    for name, (color, marker) in LINES.items():
        own = {row["weights"]: row["ms"] for row in series if row["name"] == name}
        times = fused if name == "torch fused" else [own[n] for n in sizes if n in own]
        if times:
            axes.plot(sizes[: len(times)], times, color=color, marker=marker, markersize=5, label=name)
    linear = [fused[-1] * n / sizes[-1] for n in sizes]
    axes.plot(sizes, linear, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), label="linear in the weights")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("weights", fontsize=10)
    axes.set_ylabel("ms per step", fontsize=10)
    _title(axes, "An optimizer step")
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _draw_bars(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    sections = list(dict.fromkeys(row["section"] for row in rows))
    several = len(sections) > 1
    for place, row in enumerate(rows):
        color = PLAIN if row["reached"] is None else REACHED if row["reached"] else MISSED
        axes.barh(place, row["value"], height=0.7, color=color, alpha=0.75)
        axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.1)
        if row["bar"] is not None:
            axes.plot([row["bar"]] * 2, [place - 0.5, place + 0.5], color=INK, linewidth=1.6)
        end = max(row["value"], row["high"], row["bar"] or 0.0)
        axes.annotate(
            f"{row['value']:.3f}",
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    labels = [f"{row['section'].partition(',')[0]}: " * several + row["name"] for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.08)
    _title(axes, title if several else f"{title} {sections[0]}")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=8)


def _rows(part: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Returns the rows that have a bar, and of whole iterations all."""
    return [row for row in part["rows"] if row["bar"] is not None or name == "iteration"]


def _explain(figure: Figure) -> None:
    """Says what the colours and the black lines mean."""
    handles = [
        Line2D([], [], color=REACHED, linewidth=6, alpha=0.75, label="bar reached"),
        Line2D([], [], color=MISSED, linewidth=6, alpha=0.75, label="not reached"),
        Line2D([], [], color=PLAIN, linewidth=6, alpha=0.75, label="no bar"),
        Line2D([], [], color=INK, linewidth=1.6, marker="|", linestyle="none", markersize=9, label="bar"),
    ]
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=4, loc="outside upper right")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10.5, color=INK, loc="left", fontweight="bold")
    tidy(axes)


def _place(record: dict[str, Any]) -> str:
    where = record["device"] or record["cpu"]
    return f"{where}, {record['threads']} threads, torch {record['torch']}, kernels: {record['kernels']}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path)
    arguments = parser.parse_args()
    draw(read_json(arguments.json), arguments.png)
