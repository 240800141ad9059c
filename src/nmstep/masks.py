"""Choosing N of M and splitting a weight into the part that runs and the part that waits."""

from __future__ import annotations

import torch
from torch import Tensor

from nmstep.layout import group_views
from nmstep.patterns import NMPattern

__all__ = ["check_groups", "nm_mask", "split_"]

_FEW = 8
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def nm_mask(weight: Tensor, pattern: str | NMPattern, *, dim: int = 1, pad: bool = False) -> Tensor:
    """Returns what :func:`nmstep.kernels.nm_mask` documents, in plain torch: the reference for every kernel.

    Example:
        >>> nm_mask(torch.tensor([[3.0, -4.0, 1.0, 2.0]]), "2:4").int()
        tensor([[1, 1, 0, 0]], dtype=torch.int32)
    """
    pattern = NMPattern.parse(pattern)
    check_groups(weight, pattern, dim, pad)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    weight = weight.detach()
    if weight.element_size() == 1:  # most float8 have no infinity, by which NaN is told below, and none sorts
        weight = weight.float()
    for (values, group_dim), (chosen, _) in zip(
        group_views(weight, dim, pattern.m), group_views(mask, dim, pattern.m), strict=True
    ):
        keep = min(pattern.n, values.shape[group_dim])
        choose = _choose_by_rank_ if values.shape[group_dim] <= _FEW else _choose_by_sort_
        choose(chosen, values, group_dim, keep)
    return mask


def _choose_by_sort_(chosen: Tensor, values: Tensor, dim: int, keep: int) -> None:
    # A stable sort settles ties by index, and torch sorts NaN as the largest value.
    order = values.abs().argsort(dim=dim, descending=True, stable=True)
    chosen.scatter_(dim, order.narrow(dim, 0, keep), True)


def _choose_by_rank_(chosen: Tensor, values: Tensor, dim: int, keep: int) -> None:
    """Counts, for each weight, those of its group that go before it; for small groups faster than a sort."""
    magnitudes = _ordinals(values).unbind(dim)
    for i, own in enumerate(magnitudes):
        before = torch.zeros_like(own, dtype=torch.uint8)
        for j, other in enumerate(magnitudes):
            if j != i:
                before += other >= own if j < i else other > own
        chosen.select(dim, i).copy_(before < keep)


def _ordinals(values: Tensor) -> Tensor:
    """Returns integers in the order of the magnitudes, with every NaN equal and above infinity."""
    bits = values.abs().view(_INTEGERS[values.element_size()])
    infinity = torch.full((), torch.inf, dtype=values.dtype, device=values.device).view(bits.dtype)
    return torch.minimum(bits, infinity + 1)


@torch.no_grad()
def split_(
    weight: Tensor,
    pattern: str | NMPattern,
    *,
    dim: int = 1,
    pad: bool = False,
    pruned: Tensor | None = None,
) -> Tensor:
    """Does what :func:`nmstep.kernels.split_` documents, in plain torch.

    Example:
        >>> w = torch.tensor([[3.0, -4.0, 1.0, 2.0]])
        >>> split_(w, "2:4"), w
        (tensor([[0., 0., 1., 2.]]), tensor([[ 3., -4.,  0.,  0.]]))
    """
    mask = nm_mask(weight, pattern, dim=dim, pad=pad)
    pruned = torch.empty_like(weight) if pruned is None else pruned
    pruned.copy_(weight).masked_fill_(mask, 0)
    weight.masked_fill_(mask.logical_not_(), 0)
    return pruned


def check_groups(weight: Tensor, pattern: NMPattern, dim: int, pad: bool) -> None:
    """Raises ValueError unless ``weight`` has groups of M along ``dim``, and is of a real floating dtype."""
    if not weight.is_floating_point():
        raise ValueError(f"an N:M mask needs a real floating weight, got dtype {weight.dtype}")
    if not -weight.dim() <= dim < weight.dim():
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no dimension {dim} to group along")
    size = weight.shape[dim]
    if size % pattern.m and not pad:
        raise ValueError(
            f"cannot apply {pattern} to shape {tuple(weight.shape)}: dimension {dim} has {size} elements, "
            f"not a multiple of {pattern.m}; pass pad=True to let the last group be short"
        )
