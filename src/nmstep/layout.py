"""Along which dimension the groups of a parameter run, and views of its groups.

Groups run along the dimension that the layer's matrix product sums over, since that is the one a
sparse kernel can skip along. Splitting one dimension in two is always a view, whatever the strides,
so nothing here copies a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["group_views", "reduction_dim"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is GPT-2's linear layer with an (in, out) weight, told without its package."""
    weight = getattr(module, "weight", None)
    return (
        any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)
        and isinstance(weight, Tensor)
        and weight.dim() == 2
        and weight.shape[1] == getattr(module, "nf", None)
    )


def reduction_dim(module: nn.Module, parameter: str) -> int | None:
    """Returns the dimension that groups run along, or None where the layer kind is not known.

    Args:
        module: the module that owns the parameter directly.
        parameter: the parameter's name in that module, such as ``"weight"``.

    Example:
        >>> reduction_dim(nn.Linear(8, 4), "weight"), reduction_dim(nn.ConvTranspose2d(8, 4, 3), "weight")
        (1, 0)
        >>> reduction_dim(nn.Linear(8, 4), "bias") is None
        True
    """
    if isinstance(module, nn.MultiheadAttention):
        return 1 if parameter in _ATTENTION_PROJECTIONS else None
    if parameter != "weight":
        return None
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return 1
    if isinstance(module, _TRANSPOSED):
        # An output of a grouped one sums over a part of dim 0 only, which a group of M might straddle.
        return 0 if module.groups == 1 else None
    if _is_transformers_conv1d(module):
        return 0
    return None


def group_views(tensor: Tensor, dim: int, m: int) -> Iterator[tuple[Tensor, int]]:
    """Yields views of ``tensor`` whose groups lie along one dimension of their own, with that dimension.

    The first view holds the full groups of M, shape ``(*outer, groups, m, *inner)``; a second one,
    only where M does not divide the dimension, holds the last short group, shape
    ``(*outer, r, *inner)``.

    Args:
        tensor: any shape, strides and dtype.
        dim: the dimension that groups run along; negative counts from the end.
        m: weights in a group.

    Example:
        >>> import torch
        >>> [(tuple(view.shape), d) for view, d in group_views(torch.zeros(3, 10), 1, 4)]
        [((3, 2, 4), 2), ((3, 2), 1)]
    """
    dim = dim % tensor.dim()
    size = tensor.shape[dim]
    full = size - size % m
    if full:
        yield tensor.narrow(dim, 0, full).unflatten(dim, (full // m, m)), dim + 1
    if full < size:
        yield tensor.narrow(dim, full, size - full), dim
