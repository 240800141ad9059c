"""What a switch is, what it reads, and the simplest one: a fixed step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["BaseDetector", "Detector", "Switch", "SwitchAt", "VarianceStats", "check_window", "window_of"]


@dataclass(frozen=True, kw_only=True)
class VarianceStats:
    """Statistics of Adam's uncorrected second moment v over all d coordinates after one step.

    Args:
        step: optimizer steps taken, counted from 1.
        change: ``Z_t = ‖v_t − v_{t−1}‖₁ / d``.
        norm1: ``‖v_t‖₁``.
        norm2: ``‖v_t‖₂``.
        change_geometric: geometric mean of ``|v_t − v_{t−1}|`` over the coordinates that changed; only
            where a switch asked for it.
    """

    step: int
    change: float
    norm1: float
    norm2: float
    change_geometric: float | None = None


class Detector(Protocol):
    """The running part of a switch: what it remembers between steps."""

    threshold: float | None
    window_mean: float | None

    def observe(self, stats: VarianceStats) -> str | None:
        """Returns why the masks start after this step, or None while they do not."""

    def state(self) -> dict[str, Any]:
        """Returns what must be saved, as JSON values."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave."""


class Switch(Protocol):
    """A rule for when the masks start; immutable, so that one recipe can serve many runs."""

    @property
    def needs_variance(self) -> bool:
        """Whether the rule reads Adam's second moment."""

    def check(self, total_steps: int | None) -> None:
        """Raises ValueError if the rule cannot work with this many planned steps."""

    def detector(self, *, beta2: float, total_steps: int | None) -> Detector:
        """Returns a fresh detector."""


def window_of(beta2: float) -> int:
    """Returns ``T_w = floor(1 / (1 − β2))``, the samples that v remembers."""
    # 1 / (1 - 0.999) is 999.9999999999991 in floating point; the paper's window is 1000.
    return max(1, math.floor(1.0 / (1.0 - beta2) + 1e-6))


def check_window(switch: Any) -> None:
    """Raises ValueError unless ``switch.window`` is None or a number of steps."""
    if switch.window is not None and (type(switch.window) is not int or switch.window < 1):
        raise ValueError(
            f"{type(switch).__name__}(window={switch.window!r}): expected at least 1 step, as an integer, or None"
        )


class BaseDetector:
    """A detector that remembers nothing; those that do extend it."""

    threshold: float | None = None
    window_mean: float | None = None

    def state(self) -> dict[str, Any]:
        """Returns nothing to save."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes nothing back."""
        del state


@dataclass(frozen=True)
class SwitchAt:
    """Masks start right after this many optimizer steps; 0 means in ``sparsify`` itself.

    Args:
        step: optimizer steps, ``>= 0``.

    Raises:
        ValueError: ``step`` is negative or not an integer.
    """

    step: int
    needs_variance = False

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 0:
            raise ValueError(f"SwitchAt takes a number of optimizer steps >= 0, got {self.step!r}")

    def check(self, total_steps: int | None) -> None:
        """Raises ValueError if the switch would come after the last step."""
        if total_steps is not None and self.step > total_steps:
            raise ValueError(
                f"SwitchAt({self.step}) lies after the last of total_steps={total_steps} steps: "
                f"the masks would never start"
            )

    def detector(self, *, beta2: float, total_steps: int | None) -> Detector:
        """Returns a fresh detector."""
        del beta2, total_steps
        return _AtStep(self.step)


class _AtStep(BaseDetector):
    def __init__(self, step: int) -> None:
        self.step = step

    def observe(self, stats: VarianceStats) -> str | None:
        return "scheduled" if stats.step >= self.step else None
