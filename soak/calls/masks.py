"""Calls of ``NMPattern`` and ``nm_mask``."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import nmstep
from nmstep import NMPattern
from soak.calls import oracles
from soak.calls.contract import call, expect

__all__ = ["check_mask", "check_pattern", "mask_cases", "pattern_cases", "patterns", "read"]

_DIGITS = frozenset("0123456789")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_OTHERS = (torch.int32, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


def patterns(most: int = 20) -> st.SearchStrategy[str]:
    """Draws patterns, good ones mostly."""
    good = st.integers(1, most).flatmap(lambda m: st.integers(1, m).map(lambda n: f"{n}:{m}"))
    bad = st.sampled_from(["0:4", "5:4", "2/4", "", "2:4:8", "-1:4", "2:", "1:999999999999999999999999"])
    return st.one_of(*[good] * 7, bad)


def read(text: object) -> tuple[int, int] | None:
    """Returns what a pattern spells, or None where it spells none."""
    if not isinstance(text, str):
        return None
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 2 or not all(part and set(part) <= _DIGITS for part in parts):
        return None
    n, m = map(int, parts)
    return (n, m) if 1 <= n <= m else None


#: Text, two numbers, or something that is neither.
pattern_cases = st.one_of(
    patterns(),
    st.text(max_size=6),
    st.tuples(st.text(" 0123456789:", max_size=3), st.just(":"), st.text(" 0123456789", max_size=3)).map(
        "".join
    ),
    st.tuples(st.integers(-3, 40), st.integers(-3, 40)),
    st.tuples(st.integers(), st.one_of(st.booleans(), st.floats(), st.none())),
    st.one_of(st.none(), st.integers(), st.floats(), st.binary(max_size=3)),
)


def check_pattern(case: Any) -> None:
    """One pattern: its numbers, its spelling, its bits."""
    if isinstance(case, tuple):
        n, m = case
        valid = all(type(number) is int for number in case) and 1 <= n <= m
        outcome = call(NMPattern, n, m)
        expect(outcome, (n, m) if valid else None, lambda p, want: (p.n, p.m) == want)
    else:
        outcome = call(NMPattern.parse, case)
        expect(outcome, read(case), lambda p, want: (p.n, p.m) == want and NMPattern.parse(str(p)) == p)
    pattern = getattr(outcome, "value", None)
    if pattern is not None and pattern.m <= 12:
        choices = sum(1 for _ in itertools.combinations(range(pattern.m), pattern.n))
        bits = call(pattern.index_bits, combinatorial=True)
        expect(bits, math.ceil(math.log2(choices)), lambda ours, theirs: bool(ours == theirs))


_shapes = st.lists(st.integers(0, 12), min_size=0, max_size=4).filter(lambda shape: math.prod(shape) <= 600)
#: Arguments of ``nm_mask``, with how the weight lies in memory.
mask_cases = st.fixed_dictionaries(
    {
        "shape": _shapes.map(tuple),
        "seed": st.integers(0, 2**31),
        "kind": st.sampled_from(["normal", "ties", "special"]),
        "dtype": st.one_of(*[st.sampled_from(_DTYPES)] * 5, st.sampled_from(_OTHERS)),
        "lies": st.sampled_from(["as is", "turned", "every other", "one for all", "with gradient"]),
        "pattern": st.one_of(*[patterns(12)] * 9, st.sampled_from([None, 4, b"2:4"])),
        "dim": st.one_of(st.just(-1), st.integers(-5, 4)),
        "pad": st.booleans(),
    }
)


def _laid(weight: Tensor, how: str) -> Tensor:
    """Returns the same numbers, or a view of some of them, in another order in memory."""
    match how:
        case "turned":
            return weight.permute([*reversed(range(weight.dim()))])
        case "every other" if weight.dim():
            return weight[..., ::2]
        case "one for all" if weight.dim():
            return weight.narrow(0, 0, min(1, weight.shape[0])).expand(weight.shape)
        case "with gradient" if weight.is_floating_point():
            return weight.clone().requires_grad_()
        case _:
            return weight


def check_mask(case: dict[str, Any]) -> None:
    """One mask: sorted out group by group in plain Python."""
    numbers = oracles.tensor(case["seed"], case["shape"], case["kind"])
    if not case["dtype"].is_floating_point:
        numbers = numbers.nan_to_num(0, 1, -1)
    weight = _laid(numbers.to(case["dtype"]), case["lies"])
    before = repr(weight.tolist())
    outcome = call(nmstep.nm_mask, weight, case["pattern"], dim=case["dim"], pad=case["pad"])
    expect(outcome, _mask(weight, case), lambda ours, theirs: torch.equal(ours, theirs))
    assert repr(weight.tolist()) == before, "the weight was changed"


def _mask(weight: Tensor, case: dict[str, Any]) -> Tensor | None:
    pattern, dim = read(case["pattern"]), case["dim"]
    if pattern is None or not weight.is_floating_point() or not -weight.dim() <= dim < weight.dim():
        return None
    n, m = pattern
    if weight.shape[dim] % m and not case["pad"]:
        return None
    return oracles.masked(weight, n, m, dim % weight.dim())
