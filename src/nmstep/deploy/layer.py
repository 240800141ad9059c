"""A layer that holds its weight packed, or dense where that is faster."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nmstep.deploy.moving import once
from nmstep.kernels.break_even import is_better_dense
from nmstep.kernels.one_way import one_way, wants_gradients
from nmstep.kernels.packed import PackedProduct
from nmstep.layout import reduction_dim
from nmstep.patterns import NMPattern
from nmstep.quantizing import dequantized, from_steps, in_steps
from nmstep.tiles import Tiling, as_rows, from_rows, pack_rows, unpack_rows

__all__ = ["PARTS", "PackedLayer", "Parts"]

#: The tensors of a packed weight; scales only if its values are int8.
PARTS = ("values", "indices", "scales")


class Parts(NamedTuple):
    """A packed weight.

    Args:
        values: kept weights, of the shape that the weight's :class:`nmstep.tiles.Tiling` names.
        indices: their places, likewise, int32.
        scales: of int8 values, float32, as :func:`nmstep.quantizing.quantized` gives them.
        error: of int8 values: the root mean square of what rounding changed, relative to that of the weights.
    """

    values: Tensor
    indices: Tensor
    scales: Tensor | None = None
    error: float | None = None

    def rows(self, tiling: Tiling) -> Tensor:
        """Returns the dense weight as (outputs, inputs)."""
        return unpack_rows(dequantized(self.values, self.scales), self.indices, tiling)


class PackedLayer(nn.Module):
    """A layer whose weight is N:M and held packed. It takes what the dense layer takes, and runs without gradients.

    A layer that would be slower so than dense holds its weight dense instead (see :attr:`dense_from`); its state
    dict is packed all the same.

    Args:
        like: the dense layer, whose settings are copied; with its bias memory is shared, its weight is not kept.
        pattern: N kept of M.
        parts: the packed weight.
        dtype: of the dense layer, which :func:`nmstep.unpack` gives back; ``like``'s own by default.
        fallback: False to hold and multiply the weight packed always.
    """

    #: For rooms that know nothing of packed layers, but must not take a packed model for a dense one.
    is_packed = True

    values: Tensor | None
    indices: Tensor | None
    scales: Tensor | None
    bias: nn.Parameter | None
    _held: Tensor | None
    _dtype: Tensor

    def __init__(
        self,
        like: nn.Module,
        pattern: NMPattern,
        parts: Parts,
        *,
        dtype: torch.dtype | None = None,
        fallback: bool = True,
    ) -> None:
        super().__init__()
        weight, bias = like.get_parameter("weight"), like._parameters.get("bias")
        self.register_parameter("bias", None if bias is None else _sharing(bias))
        # Follows the dtype that the model is cast to, which is the dense weight's; values may be narrower.
        witness = torch.empty(0, dtype=dtype or weight.dtype, device=parts.values.device)
        self.register_buffer("_dtype", witness, persistent=False)
        memo: dict[int, object] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
            for p in like.parameters()
        }
        self._like = [copy.deepcopy(like, memo)]  # in a list, so that it is no submodule
        self._product = PackedProduct(Tiling.of(self.shape, self.dim, pattern), fallback)
        self.is_turned = self.dim == 0
        self.error = parts.error
        self._packed_dtype = parts.values.dtype
        self._hold_packed(parts)
        is_wide = parts.values.dtype is torch.float64  # which no kernel takes
        if fallback and (is_wide or is_better_dense(self.tiling, self.dtype)):
            self._hold_dense()
        self.train(like.training)

    @property
    def like(self) -> nn.Module:
        """The dense layer without its values, on the meta device."""
        return self._like[0]

    @property
    def dim(self) -> int:
        """The dimension of the dense weight that groups run along."""
        dim = reduction_dim(self.like, "weight")
        assert dim is not None
        return dim

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense weight's shape."""
        return tuple(self.like.get_parameter("weight").shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dense layer's: what it was packed from, or the model was cast to. Values may be narrower."""
        return self._dtype.dtype

    @property
    def pattern(self) -> NMPattern:
        """N kept of M."""
        return self.tiling.pattern

    @property
    def tiling(self) -> Tiling:
        """How the weight is stored."""
        return self._product.tiling

    @property
    def dense_from(self) -> int | None:
        """From how many rows the layer multiplies a dense weight, which is faster then.

        Rows are those of the input, or the windows of a convolution: 0 where the weight is held dense, so that
        nothing is saved in memory; None for never.
        """
        return 0 if self._held is not None else self._product.dense_from(self._dtype.dtype)

    @property
    def weight(self) -> Tensor:
        """The dense weight, in the dense layer's dtype; unpacked anew each time where it is packed."""
        if self._held is not None:
            return self._held
        return from_rows(self.parts.rows(self.tiling), self.shape, self.dim).to(self._dtype.dtype)

    @property
    def values_dtype(self) -> torch.dtype:
        """What values are stored in."""
        return self._packed_dtype if self.values is None else self.values.dtype

    @property
    def owner(self) -> int:
        """The same number for layers that share their weight."""
        return id(self if self.values is None else self.values)

    @property
    def parts(self) -> Parts:
        """The packed weight; packed anew each time where it is held dense."""
        if self._held is not None and self._held.is_meta:
            return self._empty_parts()
        if self._held is not None:
            rows = as_rows(self._held, self.dim)
            rows = rows if self.scales is None else in_steps(rows, self.scales)
            packed = pack_rows(rows, self.pattern, dtype=self.values_dtype)
            return Parts(*packed, self.scales, self.error)
        assert self.values is not None
        assert self.indices is not None
        return Parts(self.values, self.indices, self.scales, self.error)

    def product(self, x: Tensor) -> Tensor:
        """Returns ``x @ rowsᵀ + bias`` for inputs of shape (…, columns)."""
        own: dict[str, Any] = self._buffers
        return self._product(x, own["values"], own["indices"], own["scales"], self._parameters["bias"])

    def multiply(self, x: Tensor) -> Tensor:
        """Returns the layer's outputs by the packed weight."""
        raise NotImplementedError

    def multiply_dense(self, x: Tensor, weight: Tensor) -> Tensor:
        """Returns the layer's outputs by the dense weight."""
        raise NotImplementedError

    def dense(self) -> nn.Module:
        """Returns the dense layer, in the dtype that it had or the model was cast to; its bias shares memory."""
        module = copy.deepcopy(self.like)
        weight = self.weight
        needs_grad = self.like.get_parameter("weight").requires_grad
        module.register_parameter("weight", nn.Parameter(weight, needs_grad))
        module.register_parameter("bias", None if self.bias is None else _sharing(self.bias))
        return module.train(self.training)

    def extra_repr(self) -> str:
        """Returns the dense layer's settings, the pattern, what values are held in, and when it runs dense."""
        own = self.like.extra_repr() or f"nf={self.tiling.rows}, nx={self.tiling.columns}"
        rows = self.dense_from
        chosen = {0: ", held dense", None: ""}.get(rows, f", dense from {rows} rows")
        lost = "" if self.error is None else f", error={self.error:.2%}"
        return f"{own}, pattern={self.pattern}, dtype={self.values_dtype}{lost}{chosen}"

    def run(self, x: Tensor) -> Tensor:
        """Returns what the dense layer would."""
        # By torch's dictionaries here and below, since looking attributes up takes as long as a small product.
        own: dict[str, Any] = self._buffers
        if own["values"] is not None:
            return self.multiply(x)
        bias, held = self._parameters["bias"], own["_held"]
        if wants_gradients(x, bias):
            return one_way(lambda x, held, _: self.multiply_dense(x, held), x, held, bias)
        return self.multiply_dense(x, held)

    def in_dtype_of(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns a weight and the bias in the input's dtype, as packed products take them."""
        bias = self._parameters["bias"]
        if weight.dtype is x.dtype or torch.is_autocast_enabled(x.device.type):
            return weight, bias
        return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)

    def _hold_packed(self, parts: Parts) -> None:
        for name in PARTS:
            self.register_buffer(name, getattr(parts, name))
        self.register_buffer("_held", None, persistent=False)

    def _hold_dense(self) -> None:
        """Holds the weight dense, in the layer's dtype; beside it the scales that it is whole steps of."""
        assert self.values is not None
        self._packed_dtype, weight = self.values.dtype, self.weight
        for name in PARTS[:2]:
            self.register_buffer(name, None)
        self.register_buffer("_held", weight, persistent=False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._held is not None:
            # To come after the others, as in a layer that is held packed.
            destination.pop(f"{prefix}scales", None)
            own = zip(PARTS, self.parts[:3], strict=True)
            destination |= {f"{prefix}{part}": tensor for part, tensor in own if tensor is not None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        values = state_dict.get(f"{prefix}values")
        if (
            isinstance(values, Tensor)
            and values.dtype.is_floating_point != self.values_dtype.is_floating_point
        ):
            *_, errors = arguments
            errors.append(
                f"{prefix}values are {values.dtype}, and the layer's {self.values_dtype}: int8 values "
                f"count steps of their scales; pack the model with the dtype of what it is to load"
            )
            return
        was_dense = self._held is not None
        if was_dense:  # what is loaded is packed
            empty = self._empty_parts()
            # What does not fit is refused by torch, and the weight stays as it was.
            is_whole = all(
                own is None or getattr(state_dict.get(f"{prefix}{part}"), "shape", None) == own.shape
                for part, own in zip(PARTS, empty[:3], strict=True)
            )
            self._hold_packed(empty if is_whole else self.parts)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if was_dense:
            self._hold_dense()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        before = self._dtype.dtype
        super()._apply(once(fn, exact=self.scales), recurse)  # type: ignore[no-untyped-call]
        if self._dtype.dtype is not before:
            if self.scales is None:
                self._packed_dtype = self._dtype.dtype
            elif self._held is not None:  # whole steps again, as the state dict says
                rows = from_steps(in_steps(as_rows(self._held, self.dim), self.scales), self.scales)
                self._held = from_rows(rows, self.shape, self.dim).to(self._dtype.dtype)
        self._product.forget()
        return self

    def _empty_parts(self) -> Parts:
        """Returns parts of the shapes and dtypes that the weight's have, with anything in them."""
        device = self._dtype.device
        values = torch.empty(self.tiling.values_shape, dtype=self.values_dtype, device=device)
        indices = torch.zeros(self.tiling.indices_shape, dtype=torch.int32, device=device)
        return Parts(values, indices, self.scales, self.error)


def _sharing(parameter: nn.Parameter) -> nn.Parameter:
    """Returns a parameter of the same memory, which casting the other does not change."""
    return nn.Parameter(parameter.detach(), parameter.requires_grad)
