"""How much of each layer's mask changes in a step, over steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nmstep.reports.extras import require
from nmstep.reports.groups import Group, group_runs
from nmstep.reports.plots.series import Series, mean_series
from nmstep.reports.plots.style import INK, grid, legend_below, tidy
from nmstep.reports.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_flip_rate"]

_NAMED_LAYERS = 8
_MARKERS = "osD^vPX*"


def plot_flip_rate(runs: Sequence[Run]) -> Figure | None:
    """Returns the share of mask entries that changed in a sampled step, by layer, over optimizer steps.

    One panel for each recipe and pattern whose mask is chosen anew; means over seeds. Up to eight layers
    are named in the legend; more are coloured from the first to the last, with a scale.

    Args:
        runs: from :func:`~nmstep.reports.load_runs`.

    Returns:
        The figure, or None where no run sampled a mask twice.
    """
    curves = [(group, _layer_curves(group)) for group in group_runs(runs)]
    curves = [(group, layers) for group, layers in curves if layers]
    if not curves:
        return None
    names = list(dict.fromkeys(name for _, layers in curves for name in layers))
    figure, panels = grid([f"{g.task}, {g.label} {g.pattern}" for g, _ in curves], height=3.0)
    colors = _colors(len(names))
    top = max(max(series.mean) for _, layers in curves for series in layers.values())
    end = max(series.steps[-1] for _, layers in curves for series in layers.values())
    for axes, (_, layers) in zip(panels, curves, strict=True):
        for place, name in enumerate(names):
            if name in layers:
                marker = _MARKERS[place] if len(names) <= _NAMED_LAYERS else None
                _draw_layer(axes, name, layers[name], colors[place], marker)
        _finish(axes, top, end)
    if len(names) <= _NAMED_LAYERS:
        legend_below(figure, panels)
    else:
        _color_scale(figure, panels, names)
    return figure


def _layer_curves(group: Group) -> dict[str, Series]:
    records = [record for run in group.drawn for record in run.layers]
    names = dict.fromkeys(record["name"] for record in records if record.get("flip_rate") is not None)
    curves = {name: mean_series(group.drawn, partial(_flips, name)) for name in names}
    found = {name: series for name, series in curves.items() if series is not None}
    # A mask chosen once never flips: all zeros tell nothing that the recipe's name does not.
    return found if any(value > 0 for series in found.values() for value in series.mean) else {}


def _flips(name: str, run: Run) -> dict[int, float]:
    rows = (r for r in run.layers if r["name"] == name and r.get("flip_rate") is not None)
    return {int(r["step"]): 100.0 * float(r["flip_rate"]) for r in rows}


def _draw_layer(axes: Axes, name: str, series: Series, color: Any, marker: str | None) -> None:
    axes.plot(
        series.steps,
        series.mean,
        color=color,
        linewidth=1.5,
        marker=marker,
        markersize=4,
        markevery=max(1, len(series.steps) // 12),
        label=name.removesuffix(".weight") if marker else None,
    )


def _finish(axes: Axes, top: float, end: int) -> None:
    axes.set_ylim(0, top * 1.06)
    axes.set_xlim(0, end * 1.01)
    axes.set_xlabel("optimizer steps", fontsize=10)
    axes.set_ylabel("mask entries flipped (%)", fontsize=10)


def _colors(count: int) -> list[Any]:
    colormap = require("matplotlib").colormaps["viridis"]
    return [colormap(0.9 * place / max(1, count - 1)) for place in range(count)]


def _color_scale(figure: Figure, panels: list[Axes], names: list[str]) -> None:
    mappable = require("matplotlib.cm").ScalarMappable(
        norm=require("matplotlib.colors").Normalize(0, (len(names) - 1) / 0.9), cmap="viridis"
    )
    mappable.set_array([])
    bar = figure.colorbar(mappable, ax=panels, location="bottom", shrink=0.6, aspect=40, pad=0.04)
    places = sorted({0, len(names) // 2, len(names) - 1})
    bar.set_ticks(places, labels=[names[place].removesuffix(".weight") for place in places])
    bar.ax.set_xlim(0, len(names) - 1)
    tidy(bar.ax)
    bar.set_label(f"{len(names)} layers, in the model's order", fontsize=9.5, color=INK)
