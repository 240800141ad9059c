"""The product with a packed weight: by the compiled kernels where they are, by plain torch where not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmstep.kernels.native import engine_for, kernels, ordinary
from nmstep.patterns import NMPattern
from nmstep.tiles import Tiling, unpack_rows

__all__ = ["PackedProduct"]

_TAKEN = (torch.float32, torch.bfloat16)


class PackedProduct:
    """``y = x @ weightᵀ + bias`` for a weight that :func:`nmstep.tiles.pack_rows` packed.

    The kernels look at the weight's tensors closely when they see them for the first time: a small product
    takes less time than such a look. They read the tensors' own memory, so what is written there is seen.

    Args:
        tiling: of the weight.
    """

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        # What was looked at, and what the kernels made of it: one object, since several threads may call.
        self._known: tuple[tuple[object, ...], Any] = ((), None)

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
            Shape (…, rows), of ``x``'s dtype, or of autocast's where that is on.

        Raises:
            ValueError: the tensors do not fit the tiling, or ``x`` has another last dimension or is not floating.
            RuntimeError: in the backward pass: a packed weight is not trained.
        """
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if _is_traced() or not ordinary(x):
            t = self.tiling
            y: Tensor = _operator(x, values, indices, bias, t.rows, t.columns, t.pattern.n, t.pattern.m)
            return y
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            result: Tensor = _OneWay.apply(self, x, values, indices, bias)  # type: ignore[no-untyped-call]
            return result
        return self.compute(x, values, indices, bias)

    def compute(self, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the product without a way back through it; as :meth:`__call__` otherwise."""
        if not x.dim() or x.shape[-1] != self.tiling.columns or not x.is_floating_point():
            raise ValueError(
                f"a packed weight of {self.tiling.columns} inputs got {x.dtype} of shape {tuple(x.shape)}: "
                f"expected floating numbers, with {self.tiling.columns} in the last dimension"
            )
        weight = self._weight(values, indices, bias)
        if weight is None and engine_for(x.device) == "triton":
            from nmstep.kernels.gpu import packed  # loads Triton

            if packed.is_taken(x, values, indices, bias):
                return packed.product(self.tiling, x, values, indices, bias)
        if weight is None or x.dtype not in _TAKEN or x.device.type != "cpu":
            dense = unpack_rows(values, indices, self.tiling).to(x.dtype)
            return F.linear(x, dense, None if bias is None else bias.to(x.dtype))
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.tiling.rows), dtype=x.dtype, device="cpu")
        batch, narrow = x.numel() // self.tiling.columns, x.dtype is torch.bfloat16
        weight.multiply(x.data_ptr(), y.data_ptr(), batch, narrow, torch.get_num_threads())
        return y

    def _weight(self, values: Tensor, indices: Tensor, bias: Tensor | None) -> Any:
        """Returns what the kernels made of these tensors, or None where they do not take them."""
        mark = (values.data_ptr(), values.dtype, indices.data_ptr())
        if bias is not None:
            mark = (*mark, bias.data_ptr(), bias.dtype)  # type: ignore[assignment]
        known, weight = self._known
        if known != mark:
            weight = self._look(values, indices, bias)
            self._known = (mark, weight)
        return weight

    def _look(self, values: Tensor, indices: Tensor, bias: Tensor | None) -> Any:
        """Checks the weight's tensors, and hands them to the kernels if these take them as they are."""
        tiling, module = self.tiling, kernels()
        if values.shape != tiling.values_shape or indices.shape != tiling.indices_shape:
            raise ValueError(
                f"a packed {tiling.pattern} weight of {tiling.rows} × {tiling.columns} has values of shape "
                f"{tiling.values_shape} and indices of {tiling.indices_shape}, got {tuple(values.shape)} and "
                f"{tuple(indices.shape)}"
            )
        tensors = [values, indices] if bias is None else [values, indices, bias]
        floats = [tensor.dtype for tensor in tensors if tensor is not indices]
        if (
            module is None
            or any(dtype not in _TAKEN for dtype in floats)
            or any(t.device.type != "cpu" or not t.is_contiguous() for t in tensors)
        ):
            return None
        n, m = tiling.pattern.n, tiling.pattern.m
        detached = [tensor.detach() for tensor in tensors] + [None] * (bias is None)
        return module.PackedWeight(*detached, tiling.rows, tiling.columns, n, m)


def _is_traced() -> bool:
    """Whether somebody records what is done with tensors, and would not see what a kernel does by addresses."""
    return (
        torch.compiler.is_compiling() or torch._C._is_tracing() or bool(torch._C._len_torch_dispatch_stack())
    )


class _OneWay(torch.autograd.Function):
    """The product where gradients are recorded: it has no backward pass."""

    @staticmethod
    def forward(
        ctx: Any, product: PackedProduct, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None
    ) -> Tensor:
        del ctx
        return product.compute(x, values, indices, bias)

    @staticmethod
    def backward(*_: Any) -> Any:
        raise RuntimeError(
            "a packed layer has no backward pass: run it under torch.no_grad(), or train the model that "
            "nmstep.unpack(model) returns"
        )


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


_operator.register_autograd(_OneWay.backward)
