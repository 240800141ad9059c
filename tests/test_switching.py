"""Switch criteria against hand-made traces and formulas written out again."""

from __future__ import annotations

import math

import pytest

from nmstep.switching import (
    AutoSwitch,
    NormRatio,
    RelativeNorm,
    Switch,
    SwitchAt,
    VarianceStats,
    replay,
    variance_change_after,
)


def trace(changes: list[float], norms: list[float] | None = None) -> list[VarianceStats]:
    norms = norms or [1.0] * len(changes)
    return [
        VarianceStats(step=t, change=z, norm1=v, norm2=v, change_geometric=z / 10)
        for t, (z, v) in enumerate(zip(changes, norms, strict=True), start=1)
    ]


def test_the_window_must_be_full_and_its_mean_below() -> None:
    quiet = trace([1e-9] * 20)
    assert replay(AutoSwitch(clip=None, window=5), quiet) == (5, "threshold")
    assert replay(AutoSwitch(clip=None, window=5, require_full_window=False), quiet) == (1, "threshold")
    # mean of the last two: 5.5e-9 first at the step where both are small enough
    assert replay(AutoSwitch(clip=None, window=2), trace([1e-6, 2e-8, 1e-8, 1e-9])) == (4, "threshold")
    assert replay(AutoSwitch(clip=None, window=2), trace([1e-6] * 9)) is None


def test_the_default_window_is_a_thousand_at_beta2_0_999() -> None:
    assert replay(AutoSwitch(clip=None), trace([1e-9] * 1200)) == (1000, "threshold")
    assert replay(AutoSwitch(clip=None), trace([1e-9] * 1200), beta2=0.99) == (100, "threshold")


def test_clipping() -> None:
    fast = AutoSwitch(window=1)
    assert replay(fast, trace([1e-9] * 100), total_steps=100) == (11, "threshold")
    assert replay(fast, trace([1.0] * 100), total_steps=100) == (51, "t_max")
    # the window of 1000 is never full within half of 100 steps: T_max decides
    assert replay(AutoSwitch(), trace([1e-9] * 100), total_steps=100) == (51, "t_max")


def test_the_geometric_mean_reads_its_own_samples() -> None:
    switch = AutoSwitch(mean="geometric", clip=None, window=1)
    assert replay(switch, trace([9e-8])) == (1, "threshold")
    with pytest.raises(ValueError, match="does not hold"):
        replay(switch, [VarianceStats(step=1, change=1.0, norm1=1.0, norm2=1.0)])


def test_equation_10_and_11() -> None:
    norms = [1.0, 3.0, 4.4, 4.5, 4.5]
    assert replay(RelativeNorm(), trace([0.0] * 5, norms)) == (3, "relative_norm")  # |4.4 - 3| / 3 = 0.47
    assert replay(RelativeNorm(bound=0.1), trace([0.0] * 5, norms)) == (4, "relative_norm")
    assert replay(NormRatio(window=2), trace([0.0] * 5, [1.0, 3.0, 0.9, 1.0, 0.9])) == (5, "norm_ratio")
    assert replay(NormRatio(window=2), trace([0.0] * 5, [1.0, 3.0, 0.97, 1.0, 0.9])) == (3, "norm_ratio")


def test_a_trace_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="step 3 where 2 was expected"):
        replay(SwitchAt(9), [trace([0.0] * 3)[i] for i in (0, 2)])


def test_table_1s_measure() -> None:
    stats = trace([1.0, 2.0, 3.0, 4.0])
    assert variance_change_after(stats, 1, d=10, horizon=2) == pytest.approx(25.0)
    assert variance_change_after(stats, 2, d=10) == pytest.approx(35.0)
    with pytest.raises(ValueError, match="no step after 4"):
        variance_change_after(stats, 4, d=10)


@pytest.mark.parametrize(
    "switch", [AutoSwitch(window=7, clip=None), RelativeNorm(bound=1e-4), NormRatio(window=7)]
)
@pytest.mark.parametrize("cut", [0, 3, 11])
def test_a_detector_continues_from_its_saved_state(switch: Switch, cut: int) -> None:
    stats = trace([10 ** (-5 - t / 8) for t in range(40)], [1 - math.exp(-t / 9) + 1e-3 for t in range(40)])
    whole, first, second = (switch.detector(beta2=0.999, total_steps=None) for _ in range(3))
    for s in stats[:cut]:
        assert whole.observe(s) == first.observe(s)
    second.load(first.state())
    for s in stats[cut:]:
        assert whole.observe(s) == second.observe(s)
        assert whole.window_mean == second.window_mean


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AutoSwitch(mean="median"), "expected 'arithmetic' or 'geometric'"),  # type: ignore[arg-type]
        (lambda: AutoSwitch(threshold=0.0), "positive"),
        (lambda: AutoSwitch(window=0), "at least 1"),
        (lambda: AutoSwitch(clip=(0.5, 0.1)), "rising shares"),
        (
            lambda: AutoSwitch().check(None),
            r"AutoSwitch\(clip=\(0.1, 0.5\)\) needs to know how long.*total_steps=",
        ),
        (lambda: SwitchAt(-1), "steps >= 0, got -1"),
        (lambda: SwitchAt(10).check(5), "never start"),
        (lambda: RelativeNorm(bound=0), "positive"),
        (lambda: NormRatio(bound=-1), "positive"),
        (lambda: NormRatio(window=0), "at least 1"),
    ],
)
def test_bad_arguments(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]
