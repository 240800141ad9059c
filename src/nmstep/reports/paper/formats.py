"""Numbers as the pages write them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nmstep.reports.paper.estimates import Difference, Estimate

__all__ = ["decimals", "differing", "estimated", "joined", "percent", "signed", "tiny"]

NONE = "–"


def decimals(metric: str) -> int:
    """Returns the decimals that a metric is shown with: four for a loss, two for all that is in percent."""
    return 4 if metric == "loss" else 2


def estimated(value: Estimate | None, digits: int) -> str:
    """Returns centre and spread, and how many seeds that is where some are missing.

    Example:
        >>> from nmstep.reports.paper.estimates import estimate
        >>> estimated(estimate({0: 98.0, 1: 99.0}, planned=3), 2)
        '98.50 ± 0.71 (2 of 3)'
        >>> estimated(estimate({0: 1.0, 1: 2.0, 2: 6.0}, planned=3, summary="median"), 1)
        '2.0 [1.0, 6.0]'
        >>> estimated(None, 2)
        '–'
    """
    if value is None:
        return NONE
    if not math.isfinite(value.center):
        text = "not finite"
    elif value.n > 1 and value.summary == "median":
        low, high = min(value.values.values()), max(value.values.values())
        text = f"{value.center:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    else:
        text = f"{value.center:.{digits}f}" + ("" if value.std is None else f" ± {value.std:.{digits}f}")
    return text + ("" if value.n == value.planned else f" ({value.n} of {value.planned})")


def signed(value: float | None, digits: int) -> str:
    """Returns a number with its sign.

    Example:
        >>> signed(-1.5, 2), signed(0.25, 1), signed(None, 1)
        ('−1.50', '+0.2', '–')
    """
    return NONE if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def differing(value: Difference | None, digits: int) -> str:
    """Returns a difference with its confidence interval, a star where that excludes zero.

    Example:
        >>> differing(Difference(mean=-0.5, half_width=0.2, n=3), 2)
        '−0.50 ± 0.20 *'
    """
    if value is None:
        return NONE
    if value.half_width is None:
        return f"{signed(value.mean, digits)} (1 seed)"
    star = " *" if value.significant else ""
    return f"{signed(value.mean, digits)} ± {value.half_width:.{digits}f}{star}"


def percent(share: float | None) -> str:
    """Returns a share in whole percent.

    Example:
        >>> percent(0.893), percent(-0.2), percent(None)
        ('89 %', '−20 %', '–')
    """
    if share is None or not math.isfinite(share):
        return NONE
    return f"{100 * share:.0f} %".replace("-0 %", "0 %").replace("-", "−")


def tiny(value: float | None) -> str:
    """Returns a number of any size with three digits.

    Example:
        >>> tiny(0.0000012345), tiny(12345.0), tiny(0.5), tiny(None)
        ('1.23e−6', '1.23e4', '0.500', '–')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e3:
        return f"{value:#.3g}".rstrip(".").replace("-", "−")
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits}e{int(exponent)}".replace("-", "−")


def joined(counts: Mapping[str, int]) -> str:
    """Returns texts with how often each occurs, without the number where there is one text only.

    Example:
        >>> joined({"latest step allowed": 3}), joined({"a": 2, "b": 1})
        ('latest step allowed', '2 × a, 1 × b')
    """
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} × {text}" for text, count in counts.items())
