"""Axes for metrics: names with units, and a scale that shows chance level and the last tenth at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nmstep.reports.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["metric_label", "scale_metric"]

_UNITS = {
    "accuracy": "accuracy (%)",
    "f1": "F1 (%)",
    "matthews": "Matthews × 100",
    "pearson": "Pearson × 100",
    "bleu": "BLEU",
    "loss": "loss (nats)",
}
_ACCURACY_TICKS = (0, 50, 80, 90, 95, 97, 98, 99, 99.5, 99.8)
_ROOM = 0.1  # percent; keeps an accuracy of exactly 100 % on the axis


def metric_label(metric: str) -> str:
    """Returns the axis label of a held-out metric, with its unit.

    Example:
        >>> metric_label("accuracy")
        'held-out accuracy (%)'
    """
    return f"held-out {_UNITS.get(metric, metric)}"


def scale_metric(axes: Axes, metric: str, values: Sequence[float]) -> None:
    """Chooses limits and scale for values of a metric that span a whole training run.

    Accuracy above 90 % with values far below is drawn by the logarithm of the error, so that equal ratios
    of errors are equal distances; perplexity and loss that fall by more than a factor 5, by their logarithm.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return
    low, high = min(known), max(known)
    if metric == "accuracy" and high > 90 and (100 - low) > 6 * (100 - high + _ROOM):
        _scale_by_error(axes, low, high)
    elif metric in ("perplexity", "loss") and low > 0 and high > 5 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(require("matplotlib.ticker").LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(require("matplotlib.ticker").StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(require("matplotlib.ticker").NullLocator())


def _scale_by_error(axes: Axes, low: float, high: float) -> None:
    numpy = require("numpy")

    def forward(accuracy: Any) -> Any:
        return -numpy.log10(numpy.maximum(100.0 - numpy.asarray(accuracy, dtype=float), 0.0) + _ROOM)

    def inverse(position: Any) -> Any:
        return 100.0 + _ROOM - 10.0 ** -numpy.asarray(position, dtype=float)

    axes.set_yscale("function", functions=(forward, inverse))
    least = max(0.0, 100.0 - (100.0 - low) * 1.15)
    most = 100.0 - max(0.0, (100.0 - high) * 0.75 - 0.02)
    axes.set_ylim(least, min(100.0, most))
    ticks = [tick for tick in (*_ACCURACY_TICKS, 100) if least <= tick <= most]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
