"""Products with packed weights: against float64, on every instruction set of this processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmstep import NMPattern
from nmstep.kernels import nm_mask
from nmstep.kernels.native import kernels as compiled
from nmstep.tiles import Tiling, pack_rows, unpack_rows

pytestmark = pytest.mark.usefixtures("variant")

PATTERNS = ["1:2", "2:4", "1:4", "3:4", "1:8", "2:8", "4:8", "3:5", "1:16", "2:16", "5:16", "1:32", "7:64"]


def case(rows: int, columns: int, pattern: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tiling]:
    weight = torch.randn(rows, columns)
    weight *= nm_mask(weight, pattern, pad=True)
    parsed = NMPattern.parse(pattern)
    return *pack_rows(weight, parsed, dtype=dtype), Tiling(rows, columns, parsed)


def product(
    values: Tensor, indices: Tensor, bias: Tensor | None, x: Tensor, t: Tiling, threads: int
) -> Tensor:
    module = compiled()
    assert module is not None
    y = x.new_full((len(x), t.rows), torch.nan)
    module.packed_linear(values, indices, bias, x, y, t.pattern.n, t.pattern.m, threads)
    return y


def check(values: Tensor, indices: Tensor, bias: Tensor | None, x: Tensor, tiling: Tiling) -> None:
    weight = unpack_rows(values, indices, tiling).double()
    expected = x.double() @ weight.T + (0 if bias is None else bias.double())
    size = x.double().abs() @ weight.abs().T + (0 if bias is None else bias.double().abs())
    found = product(values, indices, bias, x, tiling, 1)
    eps = torch.finfo(x.dtype).eps
    assert bool(((found.double() - expected).abs() <= 1e-5 * size + eps * expected.abs()).all())
    for threads in (2, 3):
        assert torch.equal(product(values, indices, bias, x, tiling, threads), found)
    if len(x) > 1:  # what else is in the batch changes nothing
        assert torch.equal(product(values, indices, bias, x[-1:].contiguous(), tiling, 1), found[-1:])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_pattern(pattern: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    m = NMPattern.parse(pattern).m
    for batch in (1, 3, 7, 50, 140):
        values, indices, tiling = case(75, 6 * m, pattern, dtype)
        check(values, indices, torch.randn(75), torch.randn(batch, 6 * m), tiling)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 100),
    columns=st.integers(1, 150),
    m=st.integers(2, 64),
    share=st.floats(0, 1),
    batch=st.integers(0, 140),
    kinds=st.tuples(
        st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([torch.float32, torch.bfloat16])
    ),
    biased=st.booleans(),
)
def test_any_shape(
    rows: int,
    columns: int,
    m: int,
    share: float,
    batch: int,
    kinds: tuple[torch.dtype, torch.dtype],
    biased: bool,
) -> None:
    torch.manual_seed(rows + 101 * columns)
    pattern = f"{1 + round(share * (m - 2))}:{m}"
    values, indices, tiling = case(rows, columns, pattern, kinds[0])
    bias = torch.randn(rows).to(kinds[1]) if biased else None
    check(values, indices, bias, torch.randn(batch, columns).to(kinds[1]), tiling)


@pytest.mark.parametrize("pattern", ["2:4", "3:5", "1:16", "3:33"])
@pytest.mark.parametrize("batch", [1, 65])
def test_any_word_reads_the_input_or_beside_it_zeros(pattern: str, batch: int) -> None:
    """Places that no packing writes: nothing outside of the kernels' own memory is read."""
    torch.manual_seed(0)
    values, indices, tiling = case(20, 70, pattern, torch.float32)
    for words in (torch.full_like(indices, -1), torch.randint_like(indices, -(2**31), 2**31 - 1)):
        found = product(values, words, None, torch.ones(batch, 70), tiling, 1)
        assert bool((found.abs() <= values.abs().sum() * 2).all())


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("fewer values", {"values": torch.zeros(2, 15, 16)}, "values do not fit"),
    ("more tiles", {"values": torch.zeros(3, 16, 16)}, "values do not fit"),
    ("fewer words", {"indices": torch.zeros(2, 0, 16, dtype=torch.int32)}, "indices do not fit"),
    ("words of 64 bits", {"indices": torch.zeros(2, 1, 16, dtype=torch.int64)}, "int32"),
    ("a short bias", {"bias": torch.zeros(19)}, "bias must be"),
    ("a float64 bias", {"bias": torch.zeros(20, dtype=torch.float64)}, "bias must be"),
    ("another type", {"values": torch.zeros(2, 16, 16, dtype=torch.float64)}, "float32 or bfloat16"),
    ("gaps", {"x": torch.zeros(3, 64)[:, ::2]}, "x must be contiguous"),
    ("unlike x", {"y": torch.zeros(3, 20, dtype=torch.bfloat16)}, "the same type"),
    ("another batch", {"y": torch.zeros(4, 20)}, "as many rows"),
    ("a pattern that keeps all", {"n": 4}, "n of m"),
    ("large groups", {"m": 65}, "n of m"),
]


@pytest.mark.parametrize(("change", "match"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    module = compiled()
    assert module is not None
    values, indices, tiling = case(20, 32, "2:4", torch.float32)
    assert values.shape == (2, 16, 16) == tiling.values_shape
    given_ = {
        "values": values,
        "indices": indices,
        "bias": None,
        "x": torch.zeros(3, 32),
        "y": torch.zeros(3, 20),
    }
    with pytest.raises(ValueError, match=match):
        module.packed_linear(**{**given_, "n": 2, "m": 4, "threads": 1, **change})
