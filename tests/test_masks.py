"""Masks against literals and a brute-force oracle in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nmstep
from nmstep.masks import nm_mask, split_


def oracle(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """Walks every group in Python; NaN beats everything, ties go to the lower index."""
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    others = [range(size) for d, size in enumerate(weight.shape) if d != dim]
    for rest in itertools.product(*others):
        for start in range(0, weight.shape[dim], m):
            group = []
            for i in range(start, min(start + m, weight.shape[dim])):
                index = (*rest[:dim], i, *rest[dim:])
                value = abs(float(weight[index]))
                group.append((0 if math.isnan(value) else 1, 0.0 if math.isnan(value) else -value, i, index))
            for *_, index in sorted(group)[:n]:
                mask[index] = True
    return mask


@pytest.mark.parametrize(
    ("weight", "pattern", "kept"),
    [
        ([1.0, -3.0, 2.0, 0.5], "2:4", [0, 1, 1, 0]),
        ([1.0, 1.0, 1.0, 1.0], "2:4", [1, 1, 0, 0]),
        ([-1.0, 2.0, 1.0, 1.0], "2:4", [1, 1, 0, 0]),
        ([0.0, 0.0, 0.0, 0.0], "1:4", [1, 0, 0, 0]),
        ([0.0, math.nan, math.inf, 1.0], "1:4", [0, 1, 0, 0]),
        ([math.nan, math.nan, math.nan, 9.0], "2:4", [1, 1, 0, 0]),
        ([-math.inf, 1.0, math.inf, 2.0], "1:4", [1, 0, 0, 0]),
        ([5.0, 4.0, 3.0, 2.0], "4:4", [1, 1, 1, 1]),
        ([1e-45, 0.0, -1e-45, 0.0], "1:4", [1, 0, 0, 0]),
    ],
)
def test_literal_groups(weight: list[float], pattern: str, kept: list[int]) -> None:
    assert nm_mask(torch.tensor([weight]), pattern).int().tolist() == [kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 8), (3, 7), (5, 8), (1, 16), (15, 16)])
def test_against_brute_force_in_every_dtype(n: int, m: int, dtype: torch.dtype) -> None:
    weight = torch.randn(3, 2 * m).mul(2).round().to(dtype)  # few values, so many ties
    weight[0, 1] = math.nan
    assert torch.equal(nm_mask(weight, f"{n}:{m}"), oracle(weight, n, m, 1))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz])
@pytest.mark.parametrize("pattern", ["2:4", "3:16"])
def test_float8_has_the_mask_of_its_numbers(pattern: str, dtype: torch.dtype) -> None:
    weight = torch.randn(6, 32).to(dtype)
    weight[0, 3] = torch.nan
    assert torch.equal(nm_mask(weight, pattern), nm_mask(weight.double(), pattern))


@pytest.mark.parametrize("pattern", [None, 4, b"2:4"])
def test_what_is_no_pattern_is_a_type_error(pattern: object) -> None:
    for call in (nm_mask, nmstep.nm_mask):
        with pytest.raises(TypeError, match="a pattern is a string such as '2:4' or an NMPattern, got"):
            call(torch.randn(4, 8), pattern)  # type: ignore[operator]
    with pytest.raises(TypeError, match="a pattern is a string such as '2:4' or an NMPattern, got"):
        nmstep.plan(torch.nn.Linear(8, 4), pattern)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
def test_every_dimension_and_stride_order(dim: int) -> None:
    base = torch.randn(8, 4, 8, 4)
    for weight in (
        base,
        base.to(memory_format=torch.channels_last),
        base.transpose(0, 2),
        base[:, :, ::2].flip(1),
    ):
        if weight.shape[dim] % 4 == 0:
            mask = nm_mask(weight, "2:4", dim=dim)
            assert torch.equal(mask, oracle(weight, 2, 4, dim % 4))
            assert torch.equal(mask.sum(dim % 4), torch.full_like(mask.sum(dim % 4), weight.shape[dim] // 2))


def test_conv_groups_run_over_channels_for_each_kernel_position() -> None:
    weight = torch.zeros(1, 4, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    weight[0, :, 0, 1] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    mask = nm_mask(weight, "2:4")
    assert mask[0, :, 0, 0].int().tolist() == [0, 0, 1, 1]
    assert mask[0, :, 0, 1].int().tolist() == [1, 1, 0, 0]


def test_padding_lets_the_last_group_be_short() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 0.3]])
    assert nm_mask(weight, "2:4", pad=True).int().tolist() == [[0, 0, 1, 1, 0, 1, 1]]
    assert nm_mask(weight[:, :5], "2:4", pad=True).int().tolist() == [[0, 0, 1, 1, 1]]
    assert nm_mask(weight[:, :3], "1:4", pad=True).int().tolist() == [[0, 0, 1]]
    assert torch.equal(
        nm_mask(torch.randn(7, 3), "3:4", dim=0, pad=True)[4:], torch.ones(3, 3, dtype=torch.bool)
    )


def test_empty_tensors_give_empty_masks() -> None:
    assert nm_mask(torch.zeros(0, 8), "2:4").shape == (0, 8)
    assert nm_mask(torch.zeros(3, 0), "2:4").shape == (3, 0)


@pytest.mark.parametrize(
    ("weight", "dim", "says"),
    [
        (torch.zeros(10, 30), 1, r"cannot apply 2:4 to shape \(10, 30\): dimension 1 has 30 elements"),
        (torch.zeros(4), 1, "has no dimension 1"),
        (torch.zeros(4, 4, dtype=torch.int32), 1, "dtype torch.int32"),
        (torch.zeros(4, 4, dtype=torch.complex64), 1, "dtype torch.complex64"),
    ],
)
def test_what_cannot_be_masked_is_explained(weight: Tensor, dim: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nm_mask(weight, "2:4", dim=dim)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_split_takes_apart_what_adds_up_again(memory_format: torch.memory_format) -> None:
    weight = torch.randn(4, 8, 3, 3).contiguous(memory_format=memory_format)
    before = weight.clone()
    pruned = split_(weight, "2:4")
    assert torch.equal(weight + pruned, before)
    assert not bool(((weight != 0) & (pruned != 0)).any())
    assert torch.equal(weight != 0, oracle(before, 2, 4, 1))
    assert weight.stride() == before.stride() == pruned.stride()


def test_split_writes_into_the_given_tensor_and_keeps_nan_apart() -> None:
    weight = torch.tensor([[math.nan, 1.0, 2.0, 3.0]])
    into = torch.full((1, 4), 7.0)
    assert split_(weight, "2:4", pruned=into) is into
    assert into.tolist() == [[0.0, 1.0, 2.0, 0.0]]
    assert math.isnan(float(weight[0, 0]))
    assert weight[0, 1:].tolist() == [0.0, 0.0, 3.0]


def test_the_latent_weight_gives_the_same_mask_again() -> None:
    weight = torch.randn(16, 32)
    mask = nm_mask(weight, "1:8")
    pruned = split_(weight, "1:8")
    assert torch.equal(nm_mask(weight + pruned, "1:8"), mask)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, int, int, int]:
    """A weight of few distinct values, with NaN and infinities among them, a pattern and a dimension."""
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    dim = draw(st.integers(0, len(shape) - 1))
    m = draw(st.integers(1, 6))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 1e-45, math.inf, -math.inf, math.nan])
    count = math.prod(shape)
    weight = torch.tensor(draw(st.lists(values, min_size=count, max_size=count))).reshape(shape)
    return weight, draw(st.integers(1, m)), m, dim


@settings(derandomize=True, deadline=None, max_examples=300)
@given(cases())
def test_any_weight_agrees_with_brute_force_and_splits_without_loss(
    case: tuple[Tensor, int, int, int],
) -> None:
    weight, n, m, dim = case
    mask = nm_mask(weight, f"{n}:{m}", dim=dim, pad=True)
    assert torch.equal(mask, oracle(weight, n, m, dim))
    kept = weight.clone()
    pruned = split_(kept, f"{n}:{m}", dim=dim, pad=True)
    assert torch.equal(torch.nan_to_num(kept + pruned, nan=7.0), torch.nan_to_num(weight, nan=7.0))
    assert not bool((kept[~mask] != 0).any())
    assert not bool((pruned[mask] != 0).any())
