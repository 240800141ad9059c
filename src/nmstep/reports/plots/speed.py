"""How many times as fast as dense fp32 a packed model and its layers are, with dense bfloat16 beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nmstep.reports.plots.style import INK, grid, legend_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_speed"]

_MOST_LAYERS = 8
_PACKED, _NARROW = "#0072B2", "#D55E00"


def plot_speed(record: Mapping[str, Any]) -> Figure:
    """Returns speed-ups over dense fp32: of the model by number of examples, of its layers by number of rows.

    Twice as fast is as far up as half as fast is down, so that one large ratio leaves room for the others. Bars are
    the rounds' range without the two extremes. Of more than eight kinds of layers, those with most weights
    are drawn; those that are held dense are not.

    Args:
        record: what ``nmstep bench --out`` writes.
    """
    layers = sorted((x for x in record["layers"] if x["rungs"]), key=_weights, reverse=True)[:_MOST_LAYERS]
    titles = [f"the model, {record['threads']} thread{'s' if record['threads'] > 1 else ''}"]
    titles += [_title(layer) for layer in layers]
    figure, panels = grid(titles, height=2.7)
    _draw(panels[0], [(row["examples"], row) for row in record["model"]], "examples at once")
    for axes, layer in zip(panels[1:], layers, strict=True):
        _draw(axes, [(row["rows"], row) for row in layer["rungs"]], "rows at once")
        if layer["dense_from"]:
            axes.axvline(layer["dense_from"], color=INK, linewidth=1.0, linestyle=(0, (1, 1)), zorder=1)
            axes.plot([], [], color=INK, linewidth=1.0, linestyle=(0, (1, 1)), label="the layer runs dense")
    legend_below(figure, panels)
    return figure


def _draw(axes: Axes, rows: Sequence[tuple[int, Mapping[str, Any]]], what: str) -> None:
    places = [place for place, _ in rows]
    ratios = [row["fp32"]["ratio"] for _, row in rows]
    spread = [
        [row["fp32"]["ratio"] - row["fp32"]["low"] for _, row in rows],
        [row["fp32"]["high"] - row["fp32"]["ratio"] for _, row in rows],
    ]
    axes.set_xscale("log", base=2)
    axes.axhline(1, color=INK, linestyle=(0, (5, 2)), linewidth=1.3, label="dense fp32", zorder=1.5)
    axes.errorbar(
        places,
        ratios,
        yerr=spread,
        color=_PACKED,
        marker="o",
        markersize=6,
        markeredgecolor="white",
        capsize=3,
        linewidth=1.8,
        label="packed",
        zorder=3,
    )
    # Of times that were measured together with the packed ones, as its own ratio is.
    narrow = [row["fp32"]["ratio"] / row["bf16"]["ratio"] for _, row in rows]
    axes.plot(
        places, narrow, color=_NARROW, marker="s", markersize=4, linewidth=1.5, label="dense bf16", zorder=2
    )
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    shown = [1.0, *narrow, *(row["fp32"][end] for _, row in rows for end in ("low", "high"))]
    _scale(axes, min(shown), max(shown))
    axes.set_xlim(places[0] / 1.5, places[-1] * 1.5)
    axes.set_xlabel(what, fontsize=10)
    axes.set_ylabel("times as fast as dense fp32", fontsize=9.5)


def _scale(axes: Axes, least: float, most: float) -> None:
    """Makes equal ratios equal distances, with ticks that read as ratios."""
    axes.set_yscale("log", base=2)
    axes.set_ylim(min(0.8, least / 1.15), max(1.25, most * 1.15))
    low, high = axes.get_ylim()
    powers = [2.0**power for power in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    ticks = [tick for tick in powers if low <= tick <= high]
    if len(ticks) < 4:
        ticks = sorted(ticks + [1.5 * power for power in powers if low <= 1.5 * power <= high])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _title(layer: Mapping[str, Any]) -> str:
    count = len(layer["names"])
    shape = " × ".join(map(str, layer["shape"]))
    return f"{shape}, {layer['pattern']} ({count} layer{'s' if count > 1 else ''})"


def _weights(layer: Mapping[str, Any]) -> int:
    total = len(layer["names"])
    for size in layer["shape"]:
        total *= size
    return int(total)
