"""What several seeds say together: centre and spread, and the difference of two recipes seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nmstep.reports.extras import require

__all__ = ["Difference", "Estimate", "difference", "estimate"]

_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Values of several seeds, put together.

    Args:
        values: by seed.
        planned: how many seeds there are to be.
        center: mean or median; NaN if a value is not finite.
        std: the sample's standard deviation; None for a single seed.
        summary: which of the two the centre is.
    """

    values: Mapping[int, float]
    planned: int
    center: float
    std: float | None
    summary: Literal["mean", "median"] = "mean"

    @property
    def n(self) -> int:
        """Seeds with a value."""
        return len(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            self.summary: self.center,
            "std": self.std,
            "n": self.n,
            "planned": self.planned,
            "seeds": {str(seed): value for seed, value in self.values.items()},
        }


def estimate(
    values: Mapping[int, float], *, planned: int, summary: Literal["mean", "median"] = "mean"
) -> Estimate | None:
    """Returns centre and sample standard deviation of one value a seed; None without any.

    Args:
        values: by seed.
        planned: how many seeds there are to be.
        summary: mean or median.

    Example:
        >>> estimate({0: 1.0, 1: 2.0, 2: 6.0}, planned=3, summary="median").center
        2.0
    """
    if not values:
        return None
    known = list(values.values())
    finite = all(map(math.isfinite, known))
    middle = statistics.median if summary == "median" else statistics.fmean
    std = None if len(known) < 2 else statistics.stdev(known) if finite else math.nan
    center = middle(known) if finite else math.nan
    return Estimate(values=dict(values), planned=planned, center=center, std=std, summary=summary)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the differences of two recipes at the same seeds.

    Args:
        mean: first minus second, in the metric's unit.
        half_width: of the 95 % confidence interval around it (Student's t); None for a single seed.
        n: seeds that both have.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {"mean": self.mean, "half_width_95": self.half_width, "n": self.n}


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Returns the mean of ``first − second`` over their common seeds, with its 95 % confidence interval.

    Args:
        first: values by seed.
        second: values by seed.

    Returns:
        The difference, or None where no seed is common or a value of a common one is not finite.

    Raises:
        ImportError: scipy is not installed.
    """
    pairs = [first[seed] - second[seed] for seed in first if seed in second]
    if not pairs or not all(map(math.isfinite, pairs)):
        return None
    mean = statistics.fmean(pairs)
    if len(pairs) < 2:
        return Difference(mean=mean, half_width=None, n=1)
    quantile = float(require("scipy.stats").t.ppf((1 + _CONFIDENCE) / 2, len(pairs) - 1))
    half_width = quantile * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(mean=mean, half_width=half_width, n=len(pairs))
