"""Layers that hold their weight packed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmstep.kernels.packed import packed_linear
from nmstep.layout import reduction_dim
from nmstep.patterns import NMPattern
from nmstep.tiles import Tiling, pack_rows, unpack_rows

__all__ = ["PackedLinear", "is_packable"]


def is_packable(module: nn.Module) -> bool:
    """Whether there is a packed layer for a module: a Linear, or a transformers Conv1D, and no subclass of its own.

    A subclass may read its weight elsewhere, as the output projection of torch's attention does.
    """
    if type(module) is nn.Linear:
        return True
    return type(module).__name__ == "Conv1D" and reduction_dim(module, "weight") == 0


def _is_transposed(dense_type: type[nn.Module]) -> bool:
    return dense_type is not nn.Linear


class PackedLinear(nn.Module):
    """A Linear, or a transformers Conv1D, whose weight is N:M and held packed: ``y = x @ weightᵀ + bias``.

    Takes inputs of shape (…, in_features) of the dtype that its dense layer took, and runs them without gradients;
    a backward pass raises. :attr:`weight` unpacks.

    Args:
        in_features: inputs.
        out_features: outputs.
        pattern: N kept of every M inputs.
        values: kept weights, as :func:`nmstep.tiles.pack_rows` returns them.
        indices: their places, likewise.
        bias: shape (out_features,), or None.
        dense_type: of the dense layer: Linear, or transformers' Conv1D, whose weight has the shape (in, out).
    """

    values: Tensor
    indices: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: NMPattern,
        values: Tensor,
        indices: Tensor,
        bias: nn.Parameter | None,
        *,
        dense_type: type[nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.pattern = pattern
        self.dense_type = dense_type
        self.register_buffer("values", values)
        self.register_buffer("indices", indices)
        self.register_parameter("bias", bias)

    @classmethod
    def of(cls, module: nn.Module, pattern: NMPattern, *, dtype: torch.dtype | None = None) -> PackedLinear:
        """Returns the packed layer of a dense one, with whose bias it shares memory.

        Args:
            module: one that :func:`is_packable` accepts.
            pattern: of its weight.
            dtype: to hold values in; the weight's own by default.

        Raises:
            ValueError: the weight is not N:M.
        """
        weight = module.get_parameter("weight").detach()
        rows, columns = weight.T.shape if _is_transposed(type(module)) else weight.shape
        values, indices = pack_rows(
            weight.T if _is_transposed(type(module)) else weight, pattern, dtype=dtype
        )
        bias = getattr(module, "bias", None)
        return cls(columns, rows, pattern, values, indices, bias, dense_type=type(module))

    @property
    def tiling(self) -> Tiling:
        """How the weight is stored."""
        return Tiling(self.out_features, self.in_features, self.pattern)

    @property
    def weight(self) -> Tensor:
        """The dense weight, unpacked anew each time, in the dense layer's shape."""
        weight = unpack_rows(self.values, self.indices, self.tiling)
        return weight.T.contiguous() if _is_transposed(self.dense_type) else weight

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x @ weightᵀ + bias``."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"a packed layer of {self.in_features} inputs got shape {tuple(x.shape)}, whose last dimension is "
                f"not {self.in_features}"
            )
        return packed_linear(x, self.values, self.indices, self.bias, self.out_features, self.pattern)

    def dense(self) -> nn.Module:
        """Returns the dense layer, with whose bias this one shares memory."""
        with torch.device("meta"):
            sizes = (self.in_features, self.out_features)
            module = self.dense_type(*(sizes[::-1] if _is_transposed(self.dense_type) else sizes))
        module.register_parameter("weight", nn.Parameter(self.weight))
        module.register_parameter("bias", self.bias)
        return module.train(self.training)

    def extra_repr(self) -> str:
        """Returns the layer's sizes and pattern."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"pattern={self.pattern}, dtype={self.values.dtype}"
        )
