from __future__ import annotations

import math

import pytest

from nmstep import NMPattern


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4:2", "pattern 4:2 keeps 4 of every 2 weights"),
        ("0:4", "pattern 0:4 keeps 0 of every 4 weights"),
        ("2:4:8", "cannot read pattern '2:4:8': expected 'N:M'"),
        ("two:four", "cannot read pattern 'two:four'"),
        ("", "cannot read pattern ''"),
        ("-1:4", "cannot read pattern '-1:4'"),
        ("2:٤", "cannot read pattern"),
    ],
)
def test_what_is_no_pattern_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NMPattern.parse(text)


@pytest.mark.parametrize("value", [24, None, ("2", "4")])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a pattern is a string such as '2:4'"):
        NMPattern.parse(value)  # type: ignore[arg-type]


def test_the_constructor_checks_too() -> None:
    with pytest.raises(ValueError, match="5:4"):
        NMPattern(5, 4)
    with pytest.raises(TypeError, match="two integers"):
        NMPattern(2.0, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="two integers"):
        NMPattern(True, 4)


def test_spaces_are_fine_and_str_is_canonical() -> None:
    assert str(NMPattern.parse(" 02 : 4 ")) == "2:4"
    assert NMPattern.parse("2:4") == NMPattern(2, 4)
    assert {NMPattern(2, 4): 1}[NMPattern.parse("2:4")] == 1


@pytest.mark.parametrize(
    ("n", "m", "usual"), [(2, 4, 4), (1, 4, 2), (1, 16, 4), (4, 4, 8), (1, 1, 0), (3, 7, 9)]
)
def test_index_bits(n: int, m: int, usual: int) -> None:
    assert NMPattern(n, m).index_bits() == usual
    assert NMPattern(n, m).index_bits(combinatorial=True) == math.ceil(math.log2(math.comb(m, n)))
