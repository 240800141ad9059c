"""Masks and splits by the kernels where they take the tensor, by plain torch where not."""

from __future__ import annotations

import torch
from torch import Tensor

from nmstep import masks
from nmstep.kernels.native import are_taken, engine_for, kernels, layout
from nmstep.masks import check_groups
from nmstep.patterns import NMPattern
from nmstep.shards import is_sharded, local, touch

__all__ = ["nm_mask", "split_"]


def nm_mask(weight: Tensor, pattern: str | NMPattern, *, dim: int = 1, pad: bool = False) -> Tensor:
    """Returns the boolean mask that keeps the N largest magnitudes of every M consecutive weights.

    Exactly N entries of each group are True. Of equal magnitudes the lower index is kept, so an
    all-zero group keeps its first N; NaN counts as largest, so that it stays visible.

    Args:
        weight: any real floating dtype, shape and strides; of a DTensor, each rank looks at its own part.
        pattern: N kept of M.
        dim: the dimension that groups run along.
        pad: treat a dimension that M does not divide as if it were padded with zeros: its last short
            group of r weights keeps ``min(N, r)``.

    Returns:
        A bool tensor of ``weight``'s shape, laid out as ``torch.zeros_like`` would.

    Raises:
        TypeError: ``pattern`` is none.
        ValueError: ``weight`` has no such dimension, M does not divide it and ``pad`` is off, the dtype is not a
            real floating one, or the pattern cannot be read.

    Source:
        SR-STE (arXiv 2102.04010), Eq. 4; STEP, Alg. 1 line 16. Ties and NaN are settled here.

    Example:
        >>> nm_mask(torch.tensor([[3.0, -4.0, 1.0, 2.0]]), "2:4").int()
        tensor([[1, 1, 0, 0]], dtype=torch.int32)
    """
    pattern = NMPattern.parse(pattern)
    if is_sharded(weight):
        found = torch.empty_like(weight, dtype=torch.bool)
        local(found).copy_(nm_mask(local(weight), pattern, dim=dim, pad=pad))
        return found
    check_groups(weight, pattern, dim, pad)
    if not are_taken(weight):
        return masks.nm_mask(weight, pattern, dim=dim, pad=pad)
    mask = torch.empty_like(weight, dtype=torch.bool)
    lies = layout(weight, pattern, dim)
    if engine_for(weight.device) == "triton":
        from nmstep.kernels.gpu import launch  # loads Triton

        launch.mask(weight.detach(), mask, launch.Lies(*lies))
        return mask
    module = kernels()
    assert module is not None
    module.mask(weight.detach(), mask.view(torch.uint8), module.Layout(*lies), torch.get_num_threads())
    return mask


@torch.no_grad()
def split_(
    weight: Tensor,
    pattern: str | NMPattern,
    *,
    dim: int = 1,
    pad: bool = False,
    pruned: Tensor | None = None,
) -> Tensor:
    """Zeroes what the mask cuts out of ``weight``, in place, and returns what was cut.

    Afterwards ``weight + pruned`` is the weight as it was, to the bit (a negative zero may come back
    positive), and no coordinate is non-zero in both.

    Args:
        weight: the latent weight; becomes exactly N:M.
        pattern: N kept of M.
        dim: the dimension that groups run along.
        pad: as for :func:`nm_mask`.
        pruned: a tensor of ``weight``'s shape and dtype to write into; a new one by default.

    Returns:
        What was cut, of ``weight``'s shape and dtype: ``pruned``, if it was given.

    Raises:
        ValueError: as :func:`nm_mask`.

    Example:
        >>> w = torch.tensor([[3.0, -4.0, 1.0, 2.0]])
        >>> split_(w, "2:4"), w
        (tensor([[0., 0., 1., 2.]]), tensor([[ 3., -4.,  0.,  0.]]))
    """
    pattern = NMPattern.parse(pattern)
    pruned = torch.empty_like(weight) if pruned is None else pruned
    if is_sharded(weight):
        split_(local(weight), pattern, dim=dim, pad=pad, pruned=local(pruned))
        touch(weight, pruned)
        return pruned
    check_groups(weight, pattern, dim, pad)
    if not are_taken(weight, pruned):
        return masks.split_(weight, pattern, dim=dim, pad=pad, pruned=pruned)
    lies = layout(weight, pattern, dim)
    if engine_for(weight.device) == "triton":
        from nmstep.kernels.gpu import launch  # loads Triton

        launch.split(weight.detach(), pruned.detach(), launch.Lies(*lies))
    else:
        module = kernels()
        assert module is not None
        module.split(weight.detach(), pruned.detach(), module.Layout(*lies), torch.get_num_threads())
    torch.autograd.graph.increment_version([weight, pruned])
    return pruned
