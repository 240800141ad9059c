"""Switch criteria decided after the fact, on the recorded trace of one dense run."""

from __future__ import annotations

import math
from collections.abc import Iterable

from nmstep.switching.switch import Switch, VarianceStats

__all__ = ["replay", "variance_change_after"]


def replay(
    switch: Switch, trace: Iterable[VarianceStats], *, beta2: float = 0.999, total_steps: int | None = None
) -> tuple[int, str] | None:
    """Returns the step and reason at which ``switch`` would have fired on a recorded dense run.

    Args:
        switch: the rule.
        trace: one sample for every optimizer step from 1 on, as ``Trace.variance()`` gives them.
        beta2: Adam's β2 in the recorded run.
        total_steps: planned optimizer steps, for clipping.

    Returns:
        ``(step, reason)``, or None if it never fired.

    Raises:
        ValueError: the trace skips a step, or lacks what the switch needs.

    Example:
        >>> from nmstep import AutoSwitch
        >>> stats = [VarianceStats(step=t, change=1.0 / t, norm1=1.0, norm2=1.0) for t in range(1, 9)]
        >>> replay(AutoSwitch(threshold=0.3, window=2, clip=None), stats)
        (4, 'threshold')
    """
    detector = switch.detector(beta2=beta2, total_steps=total_steps)
    for expected, stats in enumerate(trace, start=1):
        if stats.step != expected:
            raise ValueError(
                f"the trace holds step {stats.step} where {expected} was expected: a criterion needs every "
                f"step; record with TraceOptions(variance_every=1)"
            )
        reason = detector.observe(stats)
        if reason is not None:
            return stats.step, reason
    return None


def variance_change_after(trace: Iterable[VarianceStats], step: int, *, d: int, horizon: int = 1000) -> float:
    """Returns the mean of ``‖v_{t+1} − v_t‖₁`` over the ``horizon`` steps after ``step``.

    Table 1 of the STEP paper rates switch criteria by it: the smaller, the better the point.

    Args:
        trace: samples of a dense run.
        step: t0, optimizer steps.
        d: coordinates that the samples average over.
        horizon: optimizer steps averaged; fewer where the trace ends earlier.

    Raises:
        ValueError: the trace holds no step after ``step``.
    """
    changes = [s.change * d for s in trace if step < s.step <= step + horizon]
    if not changes:
        raise ValueError(f"the trace holds no step after {step}; record a longer dense run")
    return math.fsum(changes) / len(changes)
