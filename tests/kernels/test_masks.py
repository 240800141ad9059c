"""The compiled masks equal plain torch's, on every instruction set of this processor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmstep import kernels
from nmstep.kernels.native import are_taken, place
from nmstep.kernels.native import kernels as compiled
from one_step import check_masks

pytestmark = pytest.mark.usefixtures("variant")


PATTERNS = ["1:1", "1:2", "2:4", "1:4", "3:4", "2:3", "5:7", "4:8", "1:8", "6:12", "1:16", "9:16"]
PATTERNS += ["1:48", "1:128", "3:17", "1:32", "16:32", "33:64", "1:64", "7:100"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_in_every_layout(pattern: str, dtype: torch.dtype) -> None:
    m = int(pattern.partition(":")[2])
    generator = torch.Generator().manual_seed(m)
    for shape, dim in (
        ((5, 4 * m), 1),  # Linear
        ((2 * m, 37), 0),  # GPT-2's Conv1D
        ((3, 2 * m, 3, 3), 1),  # a convolution
        ((m, 1, 700), 0),
        ((7, 3 * m), 1),
        ((3, m + m // 2 + 1), 1),  # a short last group
        ((2, 2 * m + 1, 5), 1),
    ):
        weight = torch.randn(shape, generator=generator).to(dtype)
        check_masks(weight, pattern, dim)
        check_masks(weight.round(), pattern, dim)  # many ties


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 1e-41, -0.0, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_special_values(special: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for pattern, shape in (("2:4", (6, 32)), ("1:16", (6, 32)), ("2:5", (6, 10, 3))):
        weight = torch.randn(shape, generator=generator)
        weight[torch.rand(shape, generator=generator) < 0.4] = special
        check_masks(weight.to(dtype), pattern, 1)


def test_every_order_of_dimensions() -> None:
    weight = torch.randn(4, 8, 3, 5)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)):
        permuted = weight.permute(order).contiguous().permute(*torch.tensor(order).argsort().tolist())
        assert permuted.shape == weight.shape
        check_masks(permuted, "2:4", 1)
        check_masks(permuted, "1:4", 0)
    check_masks(weight.contiguous(memory_format=torch.channels_last), "3:8", 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fuzzed(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 40))
    n = data.draw(st.integers(1, m))
    shape = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, math.inf, math.nan, 1e-40])
    numbers = data.draw(st.lists(values, min_size=11, max_size=11))
    count = math.prod(shape)
    weight = torch.tensor(numbers).repeat(count // 11 + 1)[:count].reshape(shape)
    check_masks(weight, f"{n}:{m}", dim)


def test_the_number_of_threads_changes_nothing() -> None:
    weight = torch.randn(300, 1024)
    threads = torch.get_num_threads()
    try:
        masks_of = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            masks_of.append(kernels.nm_mask(weight, "2:4"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(masks_of[0], masks_of[1])
    assert torch.equal(masks_of[0], masks_of[2])


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 8, dtype=torch.float64),
        torch.zeros(4, 8, dtype=torch.float16),
        torch.zeros(4, 16)[:, ::2],  # gaps
        torch.zeros(1, 8).expand(4, 8),  # overlaps
        torch.zeros(4, 8, device="meta"),
        torch.zeros(4, 8).as_subclass(type("Other", (Tensor,), {})),
    ],
    ids=["float64", "float16", "gaps", "overlaps", "meta", "subclass"],
)
def test_what_the_kernels_do_not_take_goes_to_plain_torch(weight: Tensor) -> None:
    assert not are_taken(weight)
    assert kernels.nm_mask(weight, "2:4").shape == weight.shape


def test_tensors_that_do_not_fit_together_are_not_taken() -> None:
    weight = torch.zeros(4, 8)
    assert are_taken(weight, torch.zeros(4, 8))
    assert not are_taken(weight, torch.zeros(8, 4).t())
    assert not are_taken(weight, torch.zeros(4, 8, dtype=torch.bfloat16))
    assert not are_taken(weight, torch.zeros(4, 4))


def test_autograd_knows_of_the_write() -> None:
    weight = torch.randn(2, 4, requires_grad=True)
    loss = weight.square().sum()
    kernels.split_(weight, "2:4")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_layout_that_does_not_fit_is_refused() -> None:
    module = compiled()
    assert module is not None
    weight, mask = torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.uint8)
    for layout in ((4, 9, 1, 2, 4), (1, 4, 1, 2, 4), (4, 8, 1, 5, 4), (4, 8, 1, 0, 4)):
        with pytest.raises(ValueError, match="layout does not fit"):
            module.mask(weight, mask, module.Layout(*layout), 1)
    with pytest.raises(ValueError, match="pruned has another type or size"):
        module.split(weight, torch.zeros(3), module.Layout(4, 8, 1, 2, 4), 1)
    with pytest.raises(ValueError, match="float32 and bfloat16"):
        module.split(weight.double(), weight.double(), module.Layout(4, 8, 1, 2, 4), 1)


def test_where_a_dimension_lies() -> None:
    assert place(torch.zeros(2, 3, 5), 0) == (1, 2, 15)
    assert place(torch.zeros(2, 8, 3, 3).to(memory_format=torch.channels_last), 1) == (18, 8, 1)
    assert place(torch.zeros(2, 1, 5), 1) == (10, 1, 1)
    assert place(torch.zeros(0, 4), 1) == (0, 4, 1)


def test_inside_a_transform_of_torch_plain_torch_does_the_work() -> None:
    weight = torch.randn(3, 4, 8)
    mapped = torch.func.vmap(lambda w: kernels.nm_mask(w, "2:4"))(weight)
    assert torch.equal(mapped, kernels.nm_mask(weight, "2:4", dim=2))


@pytest.mark.parametrize("lazy", [torch._neg_view(torch.ones(4, 8)), torch._efficientzerotensor((4, 8))])
def test_tensors_that_are_not_what_memory_says_are_not_taken(lazy: Tensor) -> None:
    assert not are_taken(lazy)


def test_a_group_longer_than_the_dimension_costs_no_more_than_the_dimension() -> None:
    check_masks(torch.randn(4, 8), "3:1000000000", 1)


def test_many_blocks_with_short_groups() -> None:
    for pattern, shape, dim in (
        ("2:4", (3000, 67), 1),
        ("3:300", (40, 1111, 3), 1),
        ("5:12", (70, 50, 31), 1),
        ("2:4", (8, 20003), 0),
        ("1:16", (2, 32, 5001), 1),
    ):
        check_masks(torch.randn(shape), pattern, dim)


def test_the_stride_of_a_single_row_says_nothing() -> None:
    weight = torch.randn(8, 64, 1, 1)
    other = weight.to(memory_format=torch.channels_last)
    assert other.stride() != weight.stride()
    assert are_taken(weight, other)


def test_the_public_mask_refuses_what_has_no_groups() -> None:
    with pytest.raises(ValueError, match="not a multiple of 4"):
        kernels.nm_mask(torch.zeros(4, 6), "2:4")
    with pytest.raises(ValueError, match="no dimension 2"):
        kernels.split_(torch.zeros(4, 8), "2:4", dim=2)
    with pytest.raises(ValueError, match="real floating weight"):
        kernels.nm_mask(torch.zeros(4, 8, dtype=torch.int32), "2:4")
