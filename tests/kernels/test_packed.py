"""Products with packed weights: against float64, on every instruction set of this processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmstep import NMPattern
from nmstep.deploy import Parts
from nmstep.kernels import nm_mask
from nmstep.kernels.native import kernels as compiled
from nmstep.quantizing import quantized
from nmstep.tiles import Tiling, pack_rows, unpack_rows

pytestmark = pytest.mark.usefixtures("variant")

PATTERNS = ["1:2", "2:4", "1:4", "3:4", "1:8", "2:8", "4:8", "3:5", "1:16", "2:16", "5:16", "1:32", "7:64"]


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


def case(rows: int, columns: int, pattern: str, dtype: torch.dtype) -> tuple[Parts, Tiling]:
    weight = torch.randn(rows, columns)
    weight *= nm_mask(weight, pattern, pad=True)
    parsed = NMPattern.parse(pattern)
    scaled = dtype == torch.int8
    values, indices = pack_rows(weight, parsed, dtype=None if scaled else dtype)
    parts = Parts(values, indices)
    if scaled:
        values, scales, _ = quantized(values)
        parts = Parts(values, indices, scales)
    return parts, Tiling(rows, columns, parsed)


def dense(parts: Parts, tiling: Tiling) -> Tensor:
    scales = torch.ones(()) if parts.scales is None else parts.scales[:, None].double()
    return unpack_rows(parts.values.double() * scales, parts.indices, tiling)


def product(parts: Parts, bias: Tensor | None, x: Tensor, t: Tiling, threads: int) -> Tensor:
    module = compiled()
    assert module is not None
    y = x.new_full((len(x), t.rows), torch.nan)
    weight = module.PackedWeight(*parts[:3], bias, t.rows, t.columns, t.pattern.n, t.pattern.m)
    weight.multiply(x.data_ptr(), y.data_ptr(), len(x), x.dtype == torch.bfloat16, threads)
    return y


def check(parts: Parts, bias: Tensor | None, x: Tensor, tiling: Tiling) -> None:
    weight = dense(parts, tiling)
    expected = x.double() @ weight.T + (0 if bias is None else bias.double())
    size = x.double().abs() @ weight.abs().T + (0 if bias is None else bias.double().abs())
    found = product(parts, bias, x, tiling, 1)
    eps = torch.finfo(x.dtype).eps
    assert bool(((found.double() - expected).abs() <= 1e-5 * size + eps * expected.abs()).all())
    for threads in (2, 3):
        assert torch.equal(product(parts, bias, x, tiling, threads), found)
    if len(x) > 1:  # what else is in the batch changes nothing
        assert torch.equal(product(parts, bias, x[-1:].contiguous(), tiling, 1), found[-1:])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pattern(pattern: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    m = NMPattern.parse(pattern).m
    for batch in (1, 3, 7, 50, 140):
        parts, tiling = case(75, 6 * m, pattern, dtype)
        check(parts, torch.randn(75), torch.randn(batch, 6 * m), tiling)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 100),
    columns=st.integers(1, 150),
    m=st.integers(2, 64),
    share=st.floats(0, 1),
    batch=st.integers(0, 140),
    kinds=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES[:2])),
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
    parts, tiling = case(rows, columns, pattern, kinds[0])
    bias = torch.randn(rows).to(kinds[1]) if biased else None
    check(parts, bias, torch.randn(batch, columns).to(kinds[1]), tiling)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:5", "1:16", "3:33"])
@pytest.mark.parametrize("batch", [1, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_word_reads_the_input_or_beside_it_zeros(pattern: str, batch: int, dtype: torch.dtype) -> None:
    """Places that no packing writes: nothing outside of the kernels' own memory is read."""
    torch.manual_seed(0)
    parts, tiling = case(20, 70, pattern, dtype)
    indices = parts.indices
    for words in (torch.full_like(indices, -1), torch.randint_like(indices, -(2**31), 2**31 - 1)):
        found = product(Parts(parts.values, words), None, torch.ones(batch, 70).to(dtype), tiling, 1)
        assert bool((found.float().abs() <= parts.values.float().abs().sum() * 2).all())
        assert bool((expanded(Parts(parts.values, words), torch.float32, tiling).abs() <= 10).all())


def expanded(parts: Parts, dtype: torch.dtype, tiling: Tiling) -> Tensor:
    """Returns inputs × rows, from two calls that each make some tiles dense."""
    module = compiled()
    assert module is not None
    sizes = (tiling.rows, tiling.columns, tiling.pattern.n, tiling.pattern.m)
    weight = module.PackedWeight(*parts[:3], None, *sizes)
    found = torch.full((tiling.columns, tiling.tiles * 16 + 5), torch.nan, dtype=dtype)
    narrow, first = dtype == torch.bfloat16, tiling.tiles // 2
    weight.expand(found.data_ptr(), found.stride(0), 0, first, narrow, 1)
    rest = found[:, first * 16 :]
    weight.expand(rest.data_ptr(), found.stride(0), first, tiling.tiles - first, narrow, 2)
    assert bool(found[:, -5:].isnan().all())
    assert not bool(found[:, tiling.rows : -5].count_nonzero())  # rows that fill the last tile
    return found[:, : tiling.rows]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
def test_made_dense(pattern: str, dtype: torch.dtype, to: torch.dtype) -> None:
    torch.manual_seed(0)
    parts, tiling = case(75, 6 * NMPattern.parse(pattern).m - 1, pattern, dtype)
    assert torch.equal(expanded(parts, to, tiling), dense(parts, tiling).T.float().to(to))


def test_float16_values_of_every_size(variant: str) -> None:
    """All of them: zeros, subnormal and normal ones, infinities; NaN stays NaN."""
    del variant
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    parts = Parts(every.view(1, -1, 16), torch.zeros(1, 128, 16, dtype=torch.int32))  # 1:2, the first of each
    found = expanded(parts, torch.float32, Tiling(16, 8192, NMPattern(1, 2)))[::2]
    torch.testing.assert_close(found.flatten(), every.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("place", [(0, 3), (1, 2), (-1, 1), (3, 0)])
def test_only_tiles_that_are_there_are_made_dense(place: tuple[int, int]) -> None:
    module = compiled()
    assert module is not None
    parts, tiling = case(20, 32, "2:4", torch.float32)
    weight = module.PackedWeight(*parts[:3], None, tiling.rows, tiling.columns, 2, 4)
    room = torch.zeros(32, 48)
    with pytest.raises(ValueError, match="no such tiles"):
        weight.expand(room.data_ptr(), 48, *place, False, 1)
    with pytest.raises(ValueError, match="no room"):
        weight.expand(room.data_ptr(), 31, 0, 2, False, 1)


INT8 = {"values": torch.zeros(2, 16, 16, dtype=torch.int8)}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("fewer values", {"values": torch.zeros(2, 15, 16)}, "values do not fit"),
    ("more tiles", {"values": torch.zeros(3, 16, 16)}, "values do not fit"),
    ("fewer words", {"indices": torch.zeros(2, 0, 16, dtype=torch.int32)}, "indices do not fit"),
    ("words of 64 bits", {"indices": torch.zeros(2, 1, 16, dtype=torch.int64)}, "int32"),
    ("a short bias", {"bias": torch.zeros(19)}, "bias must be"),
    ("a float64 bias", {"bias": torch.zeros(20, dtype=torch.float64)}, "bias must be"),
    ("another type", {"values": torch.zeros(2, 16, 16, dtype=torch.float64)}, "float32, bfloat16, float16"),
    ("no scales", {"values": torch.zeros(2, 16, 16, dtype=torch.int8)}, "int8 values have scales"),
    ("scales", {"scales": torch.zeros(2, 16)}, "int8 values have scales"),
    ("short scales", {**INT8, "scales": torch.zeros(1, 16)}, "scales must be"),
    ("narrow scales", {**INT8, "scales": torch.zeros(2, 16, dtype=torch.bfloat16)}, "scales must be"),
    ("scales with gaps", {**INT8, "scales": torch.zeros(2, 32)[:, ::2]}, "scales must be contiguous"),
    ("a pattern that keeps all", {"n": 4}, "n of m"),
    ("large groups", {"m": 65}, "n of m"),
]


@pytest.mark.parametrize(("change", "match"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    module = compiled()
    assert module is not None
    parts, tiling = case(20, 32, "2:4", torch.float32)
    assert parts.values.shape == (2, 16, 16) == tiling.values_shape
    given_ = {"values": parts.values, "indices": parts.indices, "scales": None, "bias": None}
    with pytest.raises(ValueError, match=match):
        module.PackedWeight(**{**given_, "rows": 20, "inputs": 32, "n": 2, "m": 4, **change})


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        ((0, 2, 64, 0, 16, 1, 16, 0, 16), "must have outputs"),
        ((1, 2, 64, 0, 16, 1, 8, 0, 16), "multiple of 16"),
        ((1, 2, 64, 0, 16, 3, 16, 0, 16), "whole windows"),
        ((1, 2, 64, 0, 48, 2, 16, 0, 16), "lie in the images"),
        ((1, 2, 64, 0, 16, 1, 16, 64, 0), "lie in the images"),
        ((1, 2, 64, 0, -16, 2, 16, 0, 16), "not be negative"),
    ],
)
def test_windows_that_do_not_fit_are_refused(windows: tuple[int, ...], match: str) -> None:
    module = compiled()
    assert module is not None
    parts, tiling = case(20, 32, "2:4", torch.float32)
    weight = module.PackedWeight(*parts[:3], None, tiling.rows, tiling.columns, 2, 4)
    x, y = torch.zeros(64), torch.zeros(40)
    with pytest.raises(ValueError, match=match):
        weight.convolve(windows, x.data_ptr(), x.numel(), y.data_ptr(), 2, False, 1)


def test_pairs_are_rounded_as_one_by_one(variant: str) -> None:
    if variant != "avx512_bf16":
        pytest.skip("of processors that multiply pairs of bfloat16")
    module = compiled()
    assert module is not None
    torch.manual_seed(0)
    for pattern in PATTERNS:
        columns = (
            7 * NMPattern.parse(pattern).m - 1
        )  # a short last group, and for 1:M an odd number of groups
        parts, tiling = case(75, columns, pattern, torch.bfloat16)
        x, bias = torch.randn(140, columns).bfloat16(), torch.randn(75)
        found = []
        for name in ("avx512_bf16", "avx512"):
            module.use(name)
            found.append(product(parts, bias, x, tiling, 1))
        assert torch.equal(*found), pattern
