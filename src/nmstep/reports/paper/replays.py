"""Switch criteria decided on one recorded dense run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nmstep.reports.paper.folder import reload
from nmstep.reports.runs import Run
from nmstep.switching import (
    AutoSwitch,
    NormRatio,
    RelativeNorm,
    Switch,
    VarianceStats,
    replay,
    variance_change_after,
)

__all__ = ["HORIZON", "MAIN", "Decision", "Replayed", "coordinates", "replay_run"]

HORIZON = 1000
MAIN = ("AutoSwitch", "relative norm (Eq. 10)", "norm ratio (Eq. 11)")
_WINDOW = 1000
_MOST_POINTS = 1500


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a criterion decided on one run.

    Args:
        step: t0, optimizer steps taken.
        reason: why it fired.
        change: mean of ``‖v_{t+1} − v_t‖₁`` over the steps after t0 that the horizon covers; None after the
            last step.
    """

    step: int
    reason: str
    change: float | None


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The decisions on one run.

    Args:
        steps: of the run.
        d: coordinates of v.
        decisions: by criterion; None where it never fires.
        curve: Z_t by step, thinned.
    """

    steps: int
    d: int
    decisions: Mapping[str, Decision | None]
    curve: Mapping[int, float]


def coordinates(stats: Sequence[VarianceStats]) -> int:
    """Returns d, the number of coordinates that v has.

    After the first step ``v_1 − v_0`` is ``v_1`` itself, so that ``Z_1 = ‖v_1‖₁ / d``; both are in the
    record. Sums in single precision leave it exact up to a few million, and to seven digits above.

    Args:
        stats: from step 1 on.

    Raises:
        ValueError: the first sample is not that of step 1, or all gradients were zero there.

    Example:
        >>> coordinates([VarianceStats(step=1, change=0.25, norm1=2.0, norm2=1.0)])
        8
    """
    if not stats or stats[0].step != 1 or not stats[0].change > 0:
        raise ValueError(
            "the number of coordinates is read off step 1, which is not recorded with a change of v: record "
            "every step of a dense run under AdamW"
        )
    return round(stats[0].norm1 / stats[0].change)


def replay_run(run: Run) -> Replayed:
    """Returns where each criterion would have fired on a dense run.

    Besides the three of the paper, AutoSwitch without clipping; and where the window of 1,000 steps is more
    than half of the run, both that have a window with one of a twelfth of it.

    Args:
        run: dense, with every step recorded; it is read again, with its steps.

    Raises:
        ValueError: a step is missing; the message names the run's folder.
    """
    run = reload(run)
    stats = [
        VarianceStats(
            step=int(r["step"]),
            change=float(r["z"]),
            norm1=float(r["v_norm1"]),
            norm2=float(r["v_norm2"]),
            change_geometric=r.get("z_geometric"),
        )
        for r in run.steps
        if r.get("z") is not None
    ]
    beta2 = float((run.config.get("betas") or (0.9, 0.999))[1])
    total = int(run.config.get("steps") or run.last_step)
    try:
        d = coordinates(stats)
        decisions = {
            name: _decide(switch, stats, beta2, total, d) for name, switch in _criteria(total).items()
        }
    except ValueError as error:
        raise ValueError(f"{run.path}: {error}") from error
    stride = -(-len(stats) // _MOST_POINTS)
    curve = {s.step: s.change for s in stats[stride - 1 :: stride]}
    return Replayed(steps=total, d=d, decisions=decisions, curve=curve)


def _criteria(total: int) -> dict[str, Switch]:
    found: dict[str, Switch] = dict(zip(MAIN, (AutoSwitch(), RelativeNorm(), NormRatio()), strict=True))
    found["AutoSwitch, not clipped"] = AutoSwitch(clip=None)
    if total < 2 * _WINDOW:
        window = max(2, total // 12)
        found[f"AutoSwitch, not clipped, window {window}"] = AutoSwitch(clip=None, window=window)
        found[f"norm ratio, window {window}"] = NormRatio(window=window)
    return found


def _decide(
    switch: Switch, stats: Sequence[VarianceStats], beta2: float, total: int, d: int
) -> Decision | None:
    fired = replay(switch, stats, beta2=beta2, total_steps=total)
    if fired is None:
        return None
    step, reason = fired
    change = None
    if step < stats[-1].step:
        change = variance_change_after(stats, step, d=d, horizon=HORIZON)
    return Decision(step=step, reason=reason, change=change)
