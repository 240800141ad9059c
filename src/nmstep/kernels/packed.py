"""The product with a packed weight: by the compiled kernels where they are, by plain torch where not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmstep.kernels.native import kernels, ordinary
from nmstep.patterns import NMPattern
from nmstep.tiles import Tiling, unpack_rows

__all__ = ["PackedProduct"]

_TAKEN = (torch.float32, torch.bfloat16)
_SMALL = 128 * 128  # weights, of which a dense copy is held: what surrounds so small a product takes longest


class PackedProduct:
    """``y = x @ weightᵀ + bias`` for a weight that :func:`nmstep.tiles.pack_rows` packed.

    The kernels look at the weight's tensors closely when they see them for the first time: a small product
    takes less time than such a look. A copy, or one that was pickled, looks again.

    Args:
        tiling: of the weight.
    """

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        self._seen: tuple[object, ...] | None = None
        self._weight: Any = None
        self._dense: Tensor | None = None

    @property
    def runs_dense(self) -> bool:
        """Whether the weight is too small to be faster packed, and is multiplied as a dense one."""
        return self.tiling.rows * self.tiling.columns <= _SMALL

    def __reduce__(self) -> tuple[type[PackedProduct], tuple[Tiling]]:
        return PackedProduct, (self.tiling,)

    def __call__(self, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the product.

        Args:
            x: shape (…, columns), floating.
            values: of the packed weight.
            indices: its places.
            bias: shape (rows,), or None.

        Returns:
            Shape (…, rows), of ``x``'s dtype.

        Raises:
            ValueError: the tensors do not fit the tiling, or the last dimension of ``x`` is another.
            RuntimeError: in the backward pass: a packed weight is not trained.
        """
        wants_grad = torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        )
        if wants_grad or torch.compiler.is_compiling() or not ordinary(x):
            t = self.tiling
            y: Tensor = _operator(x, values, indices, bias, t.rows, t.columns, t.pattern.n, t.pattern.m)
            return y
        return self.compute(x, values, indices, bias)

    def compute(self, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the product without a way back through it; as :meth:`__call__` otherwise."""
        if not x.dim() or x.shape[-1] != self.tiling.columns:
            raise ValueError(
                f"a packed weight of {self.tiling.columns} inputs got shape {tuple(x.shape)}, whose last dimension "
                f"is not {self.tiling.columns}"
            )
        seen = (*_mark(values), *_mark(indices), *(() if bias is None else _mark(bias)))
        if seen != self._seen:
            self._look(values, indices, bias)
            self._seen = seen
        if self._weight is None or x.dtype not in _TAKEN or x.device.type != "cpu":
            dense = unpack_rows(values, indices, self.tiling) if self._dense is None else self._dense
            return F.linear(x, dense.to(x.dtype), bias)
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.tiling.rows), dtype=x.dtype, device="cpu")
        batch, narrow = x.numel() // self.tiling.columns, x.dtype is torch.bfloat16
        self._weight.multiply(x.data_ptr(), y.data_ptr(), batch, narrow, torch.get_num_threads())
        return y

    def _look(self, values: Tensor, indices: Tensor, bias: Tensor | None) -> None:
        """Checks the weight's tensors, and hands them to the kernels if these take them."""
        tiling, module = self.tiling, kernels()
        if values.shape != tiling.values_shape or indices.shape != tiling.indices_shape:
            raise ValueError(
                f"a packed {tiling.pattern} weight of {tiling.rows} × {tiling.columns} has values of shape "
                f"{tiling.values_shape} and indices of {tiling.indices_shape}, got {tuple(values.shape)} and "
                f"{tuple(indices.shape)}"
            )
        self._weight = self._dense = None
        if self.runs_dense:
            self._dense = unpack_rows(values, indices, tiling)
            return
        tensors = [values, indices] if bias is None else [values, indices, bias]
        if module is None or values.dtype not in _TAKEN or any(t.device.type != "cpu" for t in tensors):
            return
        own = None if bias is None else bias.detach().float().contiguous()
        n, m = tiling.pattern.n, tiling.pattern.m
        self._weight = module.PackedWeight(
            values.detach().contiguous(), indices.contiguous(), own, tiling.rows, tiling.columns, n, m
        )


def _mark(tensor: Tensor) -> tuple[object, ...]:
    """Returns what changes when a tensor is replaced or written to."""
    return tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version


@torch.library.custom_op("nmstep::packed_linear", mutates_args=())
def _operator(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, rows: int, columns: int, n: int, m: int
) -> Tensor:
    return PackedProduct(Tiling(rows, columns, NMPattern(n, m))).compute(x, values, indices, bias)


@_operator.register_fake
def _(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, rows: int, columns: int, n: int, m: int
) -> Tensor:
    del values, indices, bias, columns, n, m
    return x.new_empty(*x.shape[:-1], rows)


def _backward(*_: Any) -> Any:
    raise RuntimeError(
        "a packed layer has no backward pass: run it under torch.no_grad(), or train the model that "
        "nmstep.unpack(model) returns"
    )


_operator.register_autograd(_backward)
