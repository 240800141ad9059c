"""The product with a packed weight: by the compiled kernels where they are, by plain torch where not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmstep.kernels.native import kernels
from nmstep.patterns import NMPattern
from nmstep.tiles import Tiling, unpack_rows

__all__ = ["packed_linear"]

_TAKEN = (torch.float32, torch.bfloat16)


def packed_linear(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, rows: int, pattern: NMPattern
) -> Tensor:
    """Returns ``x @ weightᵀ + bias`` for a weight that :func:`nmstep.tiles.pack_rows` packed.

    Args:
        x: shape (…, columns), floating.
        values: of the packed weight.
        indices: its places.
        bias: shape (rows,), of ``x``'s dtype, or None.
        rows: outputs.
        pattern: N kept of M.

    Returns:
        Shape (…, rows), of ``x``'s dtype.

    Raises:
        ValueError: the shapes do not fit together.
        RuntimeError: in the backward pass: a packed weight is not trained.
    """
    tiling = Tiling(rows, x.shape[-1], pattern)
    if values.shape != tiling.values_shape or indices.shape != tiling.indices_shape:
        raise ValueError(
            f"an input of shape {tuple(x.shape)} does not fit a packed {pattern} weight with {rows} outputs, "
            f"values of shape {tuple(values.shape)} and indices of shape {tuple(indices.shape)}"
        )
    wants_grad = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if wants_grad or torch.compiler.is_compiling() or type(x) is not Tensor:
        y: Tensor = _operator(x, values, indices, bias, rows, pattern.n, pattern.m)
        return y
    return _product(x, values, indices, bias, tiling)


def _product(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, tiling: Tiling) -> Tensor:
    module = kernels()
    tensors = [x, values, indices] + ([] if bias is None else [bias])
    if (
        module is None
        or not hasattr(module, "packed_linear")
        or x.dtype not in _TAKEN
        or any(t.device.type != "cpu" for t in tensors)
        or x.numel() == 0
    ):
        return F.linear(x, unpack_rows(values, indices, tiling).to(x.dtype), bias)
    y = x.new_empty(*x.shape[:-1], tiling.rows)
    module.packed_linear(
        values,
        indices,
        None if bias is None else bias.detach().float(),
        x.detach().reshape(-1, tiling.columns),
        y.view(-1, tiling.rows),
        tiling.pattern.n,
        tiling.pattern.m,
        torch.get_num_threads(),
    )
    return y


@torch.library.custom_op("nmstep::packed_linear", mutates_args=())
def _operator(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, rows: int, n: int, m: int
) -> Tensor:
    return _product(x, values, indices, bias, Tiling(rows, x.shape[-1], NMPattern(n, m)))


@_operator.register_fake
def _(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, rows: int, n: int, m: int) -> Tensor:
    del values, indices, bias, n, m
    return x.new_empty(*x.shape[:-1], rows)


def _backward(*_: Any) -> Any:
    raise RuntimeError(
        "a packed layer has no backward pass: run it under torch.no_grad(), or train the model that "
        "nmstep.unpack(model) returns"
    )


_operator.register_autograd(_backward)
