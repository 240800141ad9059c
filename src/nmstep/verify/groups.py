"""Counting the groups of one tensor that comply with a pattern."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmstep.layout import group_views
from nmstep.patterns import NMPattern

__all__ = ["GroupCount", "Offender", "count_groups", "indivisible"]


@dataclass(frozen=True)
class Offender:
    """A group with more than N non-zero weights.

    Args:
        index: of the group's first weight in its tensor.
        dim: the dimension that the group runs along.
        values: its weights, in order.
    """

    index: tuple[int, ...]
    dim: int
    values: tuple[float, ...]

    @property
    def nonzeros(self) -> int:
        """Number of weights that are not zero; NaN is not."""
        return sum(value != 0 for value in self.values)

    def __str__(self) -> str:
        where = [str(i) for i in self.index]
        where[self.dim] += f":{self.index[self.dim] + len(self.values)}"
        values = ", ".join(f"{value:.4g}" for value in self.values)
        return f"[{', '.join(where)}] = ({values}) with {self.nonzeros} non-zeros"


@dataclass(frozen=True)
class GroupCount:
    """How many groups of a tensor comply.

    Args:
        groups: number of groups, short ones included.
        complying: groups with at most N non-zero weights.
        first: the first group that does not comply in the tensor's memory order, or None.
    """

    groups: int
    complying: int
    first: Offender | None


def indivisible(shape: tuple[int, ...], dim: int, pattern: NMPattern) -> str | None:
    """Returns why a tensor of this shape has no whole groups along ``dim``, or None where it has.

    Example:
        >>> indivisible((4, 10), 1, NMPattern(2, 4))
        'dimension 1 has 10 elements, not a multiple of 4'
    """
    size = shape[dim]
    return f"dimension {dim} has {size} elements, not a multiple of {pattern.m}" if size % pattern.m else None


def count_groups(tensor: Tensor, pattern: NMPattern, dim: int) -> GroupCount:
    """Returns how many groups of M consecutive weights hold at most N non-zeros, and the first that does not.

    NaN counts as non-zero. Where M does not divide the dimension, its last short group is a group too.
    Beyond the tensor this needs one byte a weight and one integer a group.

    Args:
        tensor: any dtype, shape and strides.
        pattern: N kept of M.
        dim: the dimension that groups run along, from 0.

    Example:
        >>> count_groups(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 3.0, 0.0]]), NMPattern(1, 4), 1)
        GroupCount(groups=2, complying=1, first=Offender(index=(1, 0), dim=1, values=(0.0, 2.0, 3.0, 0.0)))
    """
    groups = complying = 0
    offenders = []
    start = 0
    for view, group_dim in group_views(tensor.detach(), dim, pattern.m):
        too_full = torch.count_nonzero(view, dim=group_dim) > pattern.n
        bad = int(too_full.sum())
        groups += too_full.numel()
        complying += too_full.numel() - bad
        if bad:
            offenders.append(_first(tensor, too_full, dim, pattern.m, start, full=group_dim > dim))
        start = tensor.shape[dim] - tensor.shape[dim] % pattern.m
    return GroupCount(groups, complying, min(offenders, key=lambda o: o.index, default=None))


def _first(tensor: Tensor, too_full: Tensor, dim: int, m: int, start: int, *, full: bool) -> Offender:
    """Returns the first marked group; ``full`` says that the marks have a dimension that counts groups."""
    # argmax returns the first of equal values.
    place = torch.unravel_index(too_full.flatten().to(torch.uint8).argmax(), too_full.shape)
    index = [int(i) for i in place]
    if full:
        index[dim] *= m
    else:
        index.insert(dim, start)
    where: list[int | slice] = list(index)
    where[dim] = slice(index[dim], index[dim] + m)
    values = tensor.detach()[tuple(where)].to(torch.float64)
    return Offender(tuple(index), dim, tuple(values.tolist()))
