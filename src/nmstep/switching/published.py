"""The two published criteria that Table 1 of the STEP paper compares AutoSwitch with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nmstep.switching.switch import BaseDetector, Detector, VarianceStats, check_window, window_of

__all__ = ["NormRatio", "RelativeNorm"]


@dataclass(frozen=True, kw_only=True)
class RelativeNorm:
    """Masks start when ‖v‖₂ changes by less than a share in one step.

    With v starting at zero it fires within the first few steps, whatever the data.

    Args:
        bound: largest relative change, positive.

    Raises:
        ValueError: ``bound`` is not positive.

    Source:
        STEP, Eq. 10 (Agarwal et al. 2021).
    """

    bound: float = 0.5
    needs_variance = True

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"RelativeNorm(bound={self.bound!r}): expected a positive number")

    def check(self, total_steps: int | None) -> None:
        """Accepts any number of steps."""

    def detector(self, *, beta2: float, total_steps: int | None) -> Detector:
        """Returns a fresh detector."""
        del beta2, total_steps
        return _RelativeChange(self.bound)


class _RelativeChange(BaseDetector):
    def __init__(self, bound: float) -> None:
        self.threshold, self.previous = bound, 0.0

    def observe(self, stats: VarianceStats) -> str | None:
        change = abs(stats.norm2 - self.previous) / self.previous if self.previous > 0 else math.inf
        self.previous, self.window_mean = stats.norm2, change
        return "relative_norm" if change < (self.threshold or 0.0) else None

    def state(self) -> dict[str, Any]:
        return {"previous": self.previous, "window_mean": self.window_mean}

    def load(self, state: Mapping[str, Any]) -> None:
        self.previous, self.window_mean = float(state["previous"]), state["window_mean"]


@dataclass(frozen=True, kw_only=True)
class NormRatio:
    """Masks start when ‖v_t‖₁ exceeds a share of its value one window earlier.

    Args:
        bound: the ratio ``‖v_t‖₁ / ‖v_{t−T_w}‖₁`` that must be exceeded, positive.
        window: T_w in steps; None for ``floor(1 / (1 − β2))``.

    Raises:
        ValueError: an argument is out of range.

    Source:
        STEP, Eq. 11 (1-bit Adam, Tang et al. 2021).
    """

    bound: float = 0.96
    window: int | None = None
    needs_variance = True

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"NormRatio(bound={self.bound!r}): expected a positive number")
        check_window(self)

    def check(self, total_steps: int | None) -> None:
        """Accepts any number of steps."""

    def detector(self, *, beta2: float, total_steps: int | None) -> Detector:
        """Returns a fresh detector."""
        del total_steps
        return _Ratio(self.bound, self.window or window_of(beta2))


class _Ratio(BaseDetector):
    def __init__(self, bound: float, window: int) -> None:
        self.threshold = bound
        self.norms: deque[float] = deque(maxlen=window)

    def observe(self, stats: VarianceStats) -> str | None:
        oldest = self.norms[0] if len(self.norms) == self.norms.maxlen else 0.0
        self.norms.append(stats.norm1)
        self.window_mean = stats.norm1 / oldest if oldest > 0 else None
        fired = self.window_mean is not None and self.window_mean > (self.threshold or 0.0)
        return "norm_ratio" if fired else None

    def state(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "window_mean": self.window_mean}

    def load(self, state: Mapping[str, Any]) -> None:
        self.norms = deque(state["norms"], maxlen=self.norms.maxlen)
        self.window_mean = state["window_mean"]
