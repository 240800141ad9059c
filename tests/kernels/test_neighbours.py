"""The compiled kernels write to their tensors and to nothing beside them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nmstep import NMPattern, kernels
from one_step import GROUP, step_

pytestmark = pytest.mark.usefixtures("variant")

BAND = 67  # values on both sides: more than any vector has, and no multiple of one


class Carved:
    """Tensors that lie in the middle of larger memory, whose other values must not change."""

    def __init__(self) -> None:
        self._outside: list[tuple[Tensor, Tensor]] = []

    def of(self, values: Tensor) -> Tensor:
        """Returns a tensor with these values."""
        count = values.numel()
        memory = torch.arange(count + 2 * BAND).remainder(97).to(values.dtype)
        inside = memory[BAND : BAND + count].view(values.shape).copy_(values)
        self._outside += [(band, band.clone()) for band in (memory[:BAND], memory[BAND + count :])]
        return inside

    def check(self) -> None:
        """Asserts that nothing was written beside the tensors."""
        assert all(torch.equal(now, then) for now, then in self._outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["2:4", "1:8", "2:3", "1:32"])
def test_nothing_beside_the_tensors_is_written(pattern: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parsed = NMPattern.parse(pattern)
    for outer, groups, inner in (*((3, 2, inner) for inner in range(1, 20)), (1, 2, 601), (1, 1, 4097)):
        for size in (groups * parsed.m, groups * parsed.m + 1):  # with a short last group, too
            carved, shape = Carved(), (outer, size, inner)
            weight = carved.of(torch.randn(shape).to(dtype))
            mask = kernels.nm_mask(weight, parsed, dim=1, pad=True)
            pruned = carved.of(torch.zeros(shape, dtype=dtype))
            kernels.split_(weight, parsed, dim=1, pad=True, pruned=pruned)
            assert mask.sum() == outer * inner * (groups * parsed.n + min(parsed.n, size % parsed.m))
            moments = [carved.of(torch.rand(shape).to(dtype)) for _ in range(2)]
            cut = kernels.Cut(pruned=pruned, pattern=parsed, dim=1)
            step_(
                GROUP, weight, torch.randn(shape).to(dtype), *moments, step=1, cut=cut, frozen_eps_root=1e-8
            )
            carved.check()
            assert int(((weight != 0) & (pruned != 0)).sum()) == 0
            assert math.isfinite(float(weight.sum()))
