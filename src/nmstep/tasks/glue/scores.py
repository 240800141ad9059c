"""GLUE's official metrics, in percent, by scikit-learn and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nmstep.packages import require


def accuracy(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns "accuracy", the percentage of right classes.

    Args:
        predictions: int64 (examples,) predicted classes.
        labels: int64 (examples,) true classes.

    >>> accuracy(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]))
    {'accuracy': 75.0}
    """
    return {"accuracy": _percent(_metrics().accuracy_score, labels, predictions)}


def accuracy_and_f1(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns "accuracy" and "f1", of class 1; f1 is 0 where class 1 is neither predicted nor true.

    Args:
        predictions: int64 (examples,) predicted classes, 0 or 1.
        labels: int64 (examples,) true classes, 0 or 1.
    """
    f1 = _percent(_metrics().f1_score, labels, predictions, pos_label=1, zero_division=0.0)
    return accuracy(predictions, labels) | {"f1": f1}


def matthews(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns "matthews", 100 times the correlation of classes, and "accuracy"; 0 for constant predictions.

    Args:
        predictions: int64 (examples,) predicted classes, 0 or 1.
        labels: int64 (examples,) true classes, 0 or 1.
    """
    value = _percent(_metrics().matthews_corrcoef, labels, predictions)
    return {"matthews": value} | accuracy(predictions, labels)


def correlations(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns "pearson" and "spearman", 100 times the correlations of values.

    Both are 0 where there is no correlation to speak of: constant or infinite predictions, constant labels.

    Args:
        predictions: float32 (examples,) predicted values.
        labels: float32 (examples,) true values.
    """
    stats = require("scipy.stats", "the scores of GLUE")
    varies = all(bool((values != values[:1]).any()) for values in (predictions, labels))
    if not varies or not bool(torch.isfinite(predictions).all()):
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": _percent(lambda x, y: stats.pearsonr(x, y).statistic, predictions, labels),
        "spearman": _percent(lambda x, y: stats.spearmanr(x, y).statistic, predictions, labels),
    }


def _metrics() -> Any:
    return require("sklearn.metrics", "the scores of GLUE")


def _percent(function: Callable[..., Any], first: Tensor, second: Tensor, **options: object) -> float:
    """Returns 100 times a score of two vectors; the libraries' warnings on degenerate input are muted."""
    # In float64: the squares of differences in float32's last bits would be lost in its sums.
    widened = [values.double() if values.is_floating_point() else values for values in (first, second)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = 100 * float(function(*(values.numpy() for values in widened), **options))
    return value if value == value else 0.0
