"""AutoSwitch: the masks start when Adam's variance has settled."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nmstep.switching.switch import BaseDetector, Detector, VarianceStats, check_window, window_of

__all__ = ["AutoSwitch"]


@dataclass(frozen=True, kw_only=True)
class AutoSwitch:
    """Masks start when the variance has settled: the windowed mean of Z_t falls below a threshold.

    The window is ``floor(1 / (1 − β2))`` samples and must be full before the test counts. With
    ``clip=(a, b)`` and T planned steps, the switch comes neither at ``t <= a T`` nor later than the
    first ``t > b T``; when ``b T`` is reached before the window is full (short fine-tuning), ``b T``
    decides. On a GPU each sample is read, and acted on, :data:`nmstep.late.LATE_STEPS` steps after its step,
    so that the host never waits for it; a replay of the trace says the sample's own step.

    Args:
        mean: ``"arithmetic"`` (Option I) or ``"geometric"`` (Option II) over coordinates.
        threshold: the paper uses Adam's ε. Not scale-free: a loss scaled by c scales Z by c².
        window: samples averaged; None for ``floor(1 / (1 − β2))``.
        clip: shares of ``total_steps`` between which the switch must fall, or None.
        require_full_window: with False the samples so far are averaged, and only ``clip``'s lower
            share guards against too early a switch.

    Raises:
        ValueError: an argument is out of range.

    Source:
        STEP, Alg. 2.
    Deviation:
        Option II as printed sums logarithms of negative numbers; here it is the geometric mean it
        names, over the coordinates that changed at all.
    """

    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    threshold: float = 1e-8
    window: int | None = None
    clip: tuple[float, float] | None = (0.1, 0.5)
    require_full_window: bool = True
    needs_variance = True

    def __post_init__(self) -> None:
        if self.mean not in ("arithmetic", "geometric"):
            raise ValueError(f"AutoSwitch(mean={self.mean!r}): expected 'arithmetic' or 'geometric'")
        if not self.threshold > 0:
            raise ValueError(f"AutoSwitch(threshold={self.threshold!r}): expected a positive number")
        check_window(self)
        if self.clip is not None and not 0 <= self.clip[0] < self.clip[1] <= 1:
            raise ValueError(
                f"AutoSwitch(clip={self.clip!r}): expected two rising shares of total_steps between 0 and 1"
            )

    def check(self, total_steps: int | None) -> None:
        """Raises ValueError if clipping needs ``total_steps`` and it is missing."""
        if self.clip is not None and total_steps is None:
            raise ValueError(
                f"AutoSwitch(clip={self.clip}) needs to know how long training lasts: give the recipe "
                f"total_steps=<number of optimizer steps>, or turn clipping off with AutoSwitch(clip=None)"
            )

    def detector(self, *, beta2: float, total_steps: int | None) -> Detector:
        """Returns a fresh detector."""
        self.check(total_steps)
        return _Settled(self, self.window or window_of(beta2), total_steps)


class _Settled(BaseDetector):
    def __init__(self, config: AutoSwitch, window: int, total_steps: int | None) -> None:
        self.config = config
        self.threshold = config.threshold
        self.samples: deque[float] = deque(maxlen=window)
        self.t_min, self.t_max = 0.0, math.inf
        if config.clip is not None and total_steps is not None:
            self.t_min, self.t_max = (round(share * total_steps, 9) for share in config.clip)

    def observe(self, stats: VarianceStats) -> str | None:
        sample = stats.change if self.config.mean == "arithmetic" else stats.change_geometric
        if sample is None:
            raise ValueError(
                "AutoSwitch(mean='geometric') needs geometric samples, which this trace does not hold: "
                "record it with sparsify(..., trace=TraceOptions(geometric=True))"
            )
        self.samples.append(sample)
        # fsum is exact, so the mean does not depend on how the run was cut into resumes.
        self.window_mean = math.fsum(self.samples) / len(self.samples)
        full = len(self.samples) == self.samples.maxlen or not self.config.require_full_window
        if full and stats.step > self.t_min and self.window_mean < self.config.threshold:
            return "threshold"
        return "t_max" if stats.step > self.t_max else None

    def state(self) -> dict[str, Any]:
        return {"samples": list(self.samples), "window_mean": self.window_mean}

    def load(self, state: Mapping[str, Any]) -> None:
        self.samples = deque(state["samples"], maxlen=self.samples.maxlen)
        self.window_mean = state["window_mean"]
