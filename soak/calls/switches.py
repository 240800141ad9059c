"""Calls of the switches, and of recipes: what they take, and when they fire."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

import nmstep
from nmstep.switching import VarianceStats
from soak.calls.contract import Answer, call, expect
from soak.calls.masks import patterns, read

__all__ = ["check_recipe", "check_switch", "recipe_cases", "switch_cases"]

# Numbers of few bits, whose sums and comparisons are exact.
_exact = st.integers(0, 64).map(lambda i: i / 64)
_numbers = st.one_of(
    *[_exact] * 4, st.sampled_from([0.0, -1.0, math.inf, -math.inf, math.nan, 1e300, 5e-324])
)
_steps = st.one_of(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, -1, True, 10**30]))
_clips = st.one_of(
    st.none(), st.tuples(*[st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.3, 1.0, -0.1, 1.5, math.nan])] * 2)
)
_windows = st.one_of(st.none(), st.integers(1, 6), st.sampled_from([0, -2, False, 2.5]))
#: A switch, and the series that it looks at.
switch_cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["auto", "auto", "auto", "relative", "ratio", "at"]),
        "bound": _numbers,
        "window": _windows,
        "clip": _clips,
        "full": st.booleans(),
        "total": st.one_of(st.none(), st.integers(1, 40)),
        "step": _steps,
        "series": st.lists(_exact, max_size=40),
    }
)


def check_switch(case: dict[str, Any]) -> None:
    """One switch: refused where its arguments say nothing, else it fires at the oracle's step."""
    kind, bound, window, total = (case[name] for name in ("kind", "bound", "window", "total"))
    match kind:
        case "auto":
            named = {"clip": case["clip"], "require_full_window": case["full"]}
            made = call(nmstep.AutoSwitch, threshold=bound, window=window, **named)
            valid = bound > 0 and _is_window(window) and _is_clip(case["clip"])
        case "relative":
            made, valid = call(nmstep.RelativeNorm, bound=bound), bound > 0
        case "ratio":
            made = call(nmstep.NormRatio, bound=bound, window=window)
            valid = bound > 0 and _is_window(window)
        case _:
            made = call(nmstep.SwitchAt, case["step"])
            valid = type(case["step"]) is int and case["step"] >= 0
    expect(made, True if valid else None, lambda _, theirs: bool(theirs))
    if not isinstance(made, Answer):
        return
    outcome = call(made.value.detector, beta2=0.75, total_steps=total, like=type(made.value))
    if kind == "auto" and case["clip"] is not None and total is None:
        expect(outcome, None, lambda _ours, _theirs: True)
        return
    expect(outcome, True, lambda _ours, theirs: bool(theirs))
    assert isinstance(outcome, Answer)
    fired = _first(outcome.value, case["series"])
    assert fired == _expected(case), f"fired at {fired}, the oracle says {_expected(case)}"


def _is_window(window: Any) -> bool:
    return window is None or (type(window) is int and window >= 1)


def _is_clip(clip: Any) -> bool:
    return clip is None or 0 <= clip[0] < clip[1] <= 1


def _first(detector: Any, series: list[float]) -> tuple[int, str] | None:
    for step, value in enumerate(series, start=1):
        reason = detector.observe(VarianceStats(step=step, change=value, norm1=value, norm2=value))
        if reason is not None:
            return step, reason
    return None


def _expected(case: dict[str, Any]) -> tuple[int, str] | None:
    """Returns when and why a switch fires, by the papers' formulas over exact fractions."""
    series = [Fraction(value) for value in case["series"]]
    width = case["window"] or 4  # 1 / (1 − β2)
    for t, value in enumerate(series, start=1):
        match case["kind"]:
            case "auto":
                reason = _auto(case, series[:t], width)
            case "relative":
                before = series[t - 2] if t > 1 else Fraction(0)
                fired = before > 0 and _is_below(abs(value - before) / before, case["bound"])
                reason = "relative_norm" if fired else None
            case "ratio":
                before = series[t - 1 - width] if t > width else Fraction(0)
                fired = before > 0 and not _is_below(value / before, case["bound"], or_equal=True)
                reason = "norm_ratio" if fired else None
            case _:
                reason = "scheduled" if t >= case["step"] else None
        if reason is not None:
            return t, reason
    return None


def _auto(case: dict[str, Any], seen: list[Fraction], width: int) -> str | None:
    t, last = len(seen), seen[-width:]
    earliest, latest = Fraction(0), None
    if case["clip"] is not None:
        earliest, latest = (Fraction(str(share)) * case["total"] for share in case["clip"])
    settled = _is_below(sum(last, Fraction(0)) / len(last), case["bound"])
    if settled and t > earliest and (len(last) == width or not case["full"]):
        return "threshold"
    return "t_max" if latest is not None and t > latest else None


def _is_below(value: Fraction, bound: float, *, or_equal: bool = False) -> bool:
    if math.isinf(bound):
        return True
    return value <= Fraction(bound) if or_equal else value < Fraction(bound)


#: A preset and its arguments.
recipe_cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["asp", "sr-ste", "decaying", "step", "options"]),
        "pattern": st.one_of(patterns(), st.sampled_from([None, 3, b"2:4"])),
        "number": _numbers,
        "step": _steps,
        "total": st.one_of(st.none(), _steps),
        "freeze": st.booleans(),
    }
)


def check_recipe(case: dict[str, Any]) -> None:
    """One recipe: made exactly where its arguments make sense."""
    kind, pattern, step, total = (case[name] for name in ("kind", "pattern", "step", "total"))
    is_step = type(step) is int and step >= 0
    valid = read(pattern) is not None
    match kind:
        case "asp":
            made, valid = call(nmstep.ASP, pattern, step), valid and is_step
        case "sr-ste":
            made = call(nmstep.SRSTE, pattern, case["number"])
            valid = valid and 0 <= case["number"] < math.inf
        case "decaying":
            made = call(nmstep.DecayingMask, pattern, 3, interval=step)
            valid = valid and is_step and step >= 1
        case "step":
            named = {"freeze_variance": case["freeze"], "eps_root": case["number"]}
            made = call(nmstep.STEP, pattern, total, switch=nmstep.SwitchAt(5), **named)
            valid = valid and (total is None or (type(total) is int and total >= 5))
            valid = valid and 0 <= case["number"] < math.inf
        case _:
            made = call(nmstep.TraceOptions, variance_every=step, layers_every=0, block=step)
            valid = is_step and step >= 1
    expect(made, True if valid else None, lambda _, theirs: bool(theirs))
