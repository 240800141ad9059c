"""The product with a packed weight: by the compiled kernels where they are, by plain torch where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmstep.kernels.break_even import dense_from
from nmstep.kernels.native import engine_for, kernels, ordinary
from nmstep.kernels.one_way import one_way, refused, wants_gradients
from nmstep.patterns import NMPattern
from nmstep.quantizing import dequantized
from nmstep.tiles import LANES, Tiling, unpack_rows

__all__ = ["PackedProduct", "check_input"]

_TAKEN = (torch.float32, torch.bfloat16)
_CAST = (torch.float32, torch.bfloat16, torch.float16)  # by autocast
_PART = 1 << 21  # bytes of a weight that is made dense at a time: they stay in the cache


class PackedProduct:
    """``y = x @ weightᵀ + bias`` for a weight that :func:`nmstep.tiles.pack_rows` packed.

    The kernels look at the weight's tensors closely when they see them for the first time: a small product
    takes less time than such a look. They read the tensors' own memory, so what is written there is seen.

    Args:
        tiling: of the weight.
        fallback: whether the weight is made dense for a call where the call is faster so; see :meth:`dense_from`.
    """

    def __init__(self, tiling: Tiling, fallback: bool = True) -> None:
        self.tiling = tiling
        self.fallback = fallback
        # What was looked at, and what the kernels made of it: one object, since several threads may call.
        self._known: tuple[tuple[object, ...], Any] = ((), None)

    def __reduce__(self) -> tuple[type[PackedProduct], tuple[Tiling, bool]]:
        return PackedProduct, (self.tiling, self.fallback)

    def dense_from(self, dtype: torch.dtype) -> int | None:
        """Returns from how many rows of an input of this dtype the weight is made dense for a call, or None."""
        return dense_from(self.tiling, dtype) if self.fallback else None

    def __call__(
        self, x: Tensor, values: Tensor, indices: Tensor, scales: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Returns the product.

        Args:
            x: shape (…, columns), floating.
            values: of the packed weight.
            indices: its places.
            scales: of int8 values, as :func:`nmstep.quantizing.quantized` gives them; None for others.
            bias: shape (rows,), or None.

        Returns:
            Shape (…, rows), of ``x``'s dtype, or of autocast's where that is on.

        Raises:
            ValueError: the tensors do not fit the tiling, or ``x`` has another last dimension or is not floating.
            RuntimeError: in the backward pass: a packed weight is not trained.
        """
        device = "cpu" if x.is_cpu else x.device.type  # to ask for the device takes as long as all else here
        if device != "meta" and torch.is_autocast_enabled(device) and x.dtype in _CAST:
            x = x.to(torch.get_autocast_dtype(device))
        if _is_traced() or not ordinary(x):
            t = self.tiling
            sizes = (t.rows, t.columns, t.pattern.n, t.pattern.m)
            y: Tensor = _operator(x, values, indices, scales, bias, *sizes, self.fallback)
            return y
        if wants_gradients(x, bias):
            return one_way(self.compute, x, values, indices, scales, bias)
        return self.compute(x, values, indices, scales, bias)

    def of_images(
        self,
        x: Tensor,
        windows: Sequence[int],
        values: Tensor,
        indices: Tensor,
        scales: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor | None:
        """Returns the product with each window of some images, or None where the windows must be laid out for it.

        Args:
            x: shape (batch, …, channels), contiguous, padding included.
            windows: outputs' height and width, strides in ``x`` (image; output place, y and x), the kernel's width,
                channels, and strides in ``x`` of the kernel's places, y and x.
            values: as for :meth:`__call__`.
            indices: as for :meth:`__call__`.
            scales: as for :meth:`__call__`.
            bias: as for :meth:`__call__`.

        Returns:
            Shape (batch, height, width, rows).
        """
        if _is_traced() or not ordinary(x) or not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return None
        rows, least = len(x) * windows[0] * windows[1], self.dense_from(x.dtype)
        is_many = least is not None and rows >= least
        if wants_gradients(x, bias) or windows[6] % LANES or x.dtype not in _TAKEN or is_many:
            return None
        weight = self._weight(values, indices, scales, bias)
        if weight is None:
            return None
        y = x.new_empty(len(x), windows[0], windows[1], self.tiling.rows)
        narrow = x.dtype is torch.bfloat16
        weight.convolve(windows, x.data_ptr(), x.numel(), y.data_ptr(), rows, narrow, torch.get_num_threads())
        return y

    def compute(
        self, x: Tensor, values: Tensor, indices: Tensor, scales: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Returns the product without a way back through it; as :meth:`__call__` otherwise."""
        tiling, dtype = self.tiling, x.dtype
        check_input(x, tiling)
        if bias is not None and bias.dtype is torch.float16 and x.is_cpu:
            bias = bias.float()
        weight = self._weight(values, indices, scales, bias)
        if weight is None or not x.is_cpu or dtype is torch.float64:
            return self._by_others(x, values, indices, scales, bias)
        if dtype not in _TAKEN:
            return self.compute(x.float(), values, indices, scales, bias).to(dtype)
        x = x.contiguous()
        batch, narrow = x.numel() // tiling.columns, dtype is torch.bfloat16
        if narrow and batch > 1:  # to ask takes as long as a small product
            least = self.dense_from(dtype)
            if least is not None and batch >= least:
                return self._by_parts(weight, x, bias)
        y = x.new_empty((*x.shape[:-1], tiling.rows))
        weight.multiply(x.data_ptr(), y.data_ptr(), batch, narrow, torch.get_num_threads())
        return y

    def _by_others(
        self, x: Tensor, values: Tensor, indices: Tensor, scales: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Returns the product where the compiled kernels do not work: by Triton, or by plain torch."""
        if engine_for(x.device) == "triton":
            from nmstep.kernels.gpu import packed  # loads Triton

            if packed.is_taken(x, values, indices, bias):
                if scales is None:
                    return packed.product(self.tiling, x, values, indices, bias)
                return packed.scaled_product(self.tiling, x, values, indices, scales, bias)
        dense = unpack_rows(dequantized(values, scales), indices, self.tiling).to(x.dtype)
        return F.linear(x, dense, None if bias is None else bias.to(x.dtype))

    def _by_parts(self, weight: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the product by torch's own, with some rows of the weight made dense after the other."""
        outputs, inputs = self.tiling.rows, self.tiling.columns
        y, rows = x.new_empty(*x.shape[:-1], outputs), x.view(-1, inputs)
        tiles = max(1, min(self.tiling.tiles, _PART // (inputs * x.itemsize * LANES)))
        part, out = x.new_empty(inputs, tiles * LANES), y.view(-1, outputs)
        narrow, threads = x.dtype is torch.bfloat16, torch.get_num_threads()
        for tile in range(0, self.tiling.tiles, tiles):
            first, count = tile * LANES, min(tiles, self.tiling.tiles - tile)
            weight.expand(part.data_ptr(), part.stride(0), tile, count, narrow, threads)
            last = min(first + count * LANES, outputs)
            columns = part[:, : last - first]
            if bias is None:
                torch.mm(rows, columns, out=out[:, first:last])
            else:
                torch.addmm(bias[first:last].to(x.dtype), rows, columns, out=out[:, first:last])
        return y

    def forget(self) -> None:
        """Lets go of the tensors that were looked at."""
        self._known = ((), None)

    def _weight(self, values: Tensor, indices: Tensor, scales: Tensor | None, bias: Tensor | None) -> Any:
        """Returns what the kernels made of these tensors, or None where they do not take them."""
        mark: tuple[object, ...] = (values.data_ptr(), values.dtype, indices.data_ptr())
        if scales is not None:
            mark = (*mark, scales.data_ptr())
        if bias is not None:
            mark = (*mark, bias.data_ptr(), bias.dtype)
        known, weight = self._known
        if known != mark:
            weight = self._look(values, indices, scales, bias)
            self._known = (mark, weight)
        return weight

    def _look(self, values: Tensor, indices: Tensor, scales: Tensor | None, bias: Tensor | None) -> Any:
        """Checks the weight's tensors, and hands them to the kernels if these take them as they are."""
        tiling, module = self.tiling, kernels()
        if values.shape != tiling.values_shape or indices.shape != tiling.indices_shape:
            raise ValueError(
                f"a packed {tiling.pattern} weight of {tiling.rows} × {tiling.columns} has values of shape "
                f"{tiling.values_shape} and indices of {tiling.indices_shape}, got {tuple(values.shape)} and "
                f"{tuple(indices.shape)}"
            )
        if (values.dtype is torch.int8) != (scales is not None):
            raise ValueError(
                f"values of {values.dtype} {'lack' if scales is None else 'have'} scales: int8 values have them"
            )
        tensors = [values, indices, *(t for t in (scales, bias) if t is not None)]
        if (
            module is None
            or values.dtype is torch.float64
            or (bias is not None and bias.dtype not in _TAKEN)
            or any(t.device.type != "cpu" or not t.is_contiguous() for t in tensors)
        ):
            return None
        parts = [None if t is None else t.detach() for t in (values, indices, scales, bias)]
        return module.PackedWeight(*parts, tiling.rows, tiling.columns, tiling.pattern.n, tiling.pattern.m)


def check_input(x: Tensor, tiling: Tiling) -> None:
    """Raises ValueError unless ``x`` is floating and its last dimension is the inputs of the weight."""
    if not x.dim() or x.shape[-1] != tiling.columns or not x.is_floating_point():
        raise ValueError(
            f"a packed weight of {tiling.columns} inputs got {x.dtype} of shape {tuple(x.shape)}: "
            f"expected floating numbers, with {tiling.columns} in the last dimension"
        )


def _is_traced() -> bool:
    """Whether somebody records what is done with tensors, and would not see what a kernel does by addresses."""
    return (
        torch.compiler.is_compiling() or torch._C._is_tracing() or bool(torch._C._len_torch_dispatch_stack())
    )


@torch.library.custom_op("nmstep::packed_linear", mutates_args=())
def _operator(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    rows: int,
    columns: int,
    n: int,
    m: int,
    fallback: bool,
) -> Tensor:
    product = PackedProduct(Tiling(rows, columns, NMPattern(n, m)), fallback)
    return product.compute(x, values, indices, scales, bias)


@_operator.register_fake
def _(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    rows: int,
    columns: int,
    n: int,
    m: int,
    fallback: bool,
) -> Tensor:
    del values, indices, scales, bias, columns, n, m, fallback
    return x.new_empty(*x.shape[:-1], rows)


def _keep_shapes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    x, *_, bias = inputs[:5]
    ctx.likes = [(0, x.shape, x.dtype)]
    if bias is not None:
        ctx.likes.append((4, bias.shape, bias.dtype))


def _refuse(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * 10
    for place, shape, dtype in ctx.likes:
        if ctx.needs_input_grad[place]:
            gradients[place] = refused(gradient, shape).to(dtype)
    return tuple(gradients)


_operator.register_autograd(_refuse, setup_context=_keep_shapes)
