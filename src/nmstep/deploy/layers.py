"""Layers that hold their weight packed."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.kernels.packed import PackedProduct
from nmstep.layout import reduction_dim
from nmstep.patterns import NMPattern
from nmstep.tiles import Tiling, from_rows, has_rows, unpack_rows

__all__ = ["PackedConv", "PackedLayer", "PackedLinear", "packed_type"]


def packed_type(module: nn.Module, pattern: NMPattern) -> type[PackedLayer] | None:
    """Returns the packed layer for a dense one, or None where there is none.

    There is one for Linear, transformers' Conv1D, and Conv1d and Conv2d of one group, but for no class derived from
    them: it may read its weight elsewhere, as the output projection of torch's attention does. Nor is there one for
    a layer with hooks or a forward of its own, which would be lost.
    """
    dim = reduction_dim(module, "weight")
    weight = module._parameters.get("weight")
    if dim is None or weight is None or not has_rows(weight.shape, dim, pattern) or not _is_plain(module):
        return None
    if type(module) is nn.Linear or (type(module).__name__ == "Conv1D" and dim == 0):
        return PackedLinear
    return PackedConv if type(module) in (nn.Conv1d, nn.Conv2d) and module.groups == 1 else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer is nothing but its kind, its weight and its bias."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    more = ({*module._parameters} - {"weight", "bias"}, module._buffers, module._modules)
    return not any(hooks) and not any(more) and "forward" not in vars(module)


class PackedLayer(nn.Module):
    """A layer whose weight is N:M and held packed. It takes what the dense layer takes, and runs without gradients.

    Args:
        like: the dense layer, whose settings are copied; with its bias memory is shared, its weight is not kept.
        pattern: N kept of M.
        values: kept weights, of the shape that :attr:`tiling` names, as :func:`nmstep.tiles.pack_rows` gives them.
        indices: their places, likewise, int32.
    """

    values: Tensor
    indices: Tensor
    bias: nn.Parameter | None

    def __init__(self, like: nn.Module, pattern: NMPattern, values: Tensor, indices: Tensor) -> None:
        super().__init__()
        weight, bias = like.get_parameter("weight"), like._parameters.get("bias")
        self.register_buffer("values", values)
        self.register_buffer("indices", indices)
        self.register_parameter("bias", None if bias is None else _sharing(bias))
        # Follows the dtype that the model is cast to, which is the dense weight's; values may be narrower.
        witness = torch.empty(0, dtype=weight.dtype, device=values.device)
        self.register_buffer("_dtype", witness, persistent=False)
        memo: dict[int, object] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
            for p in like.parameters()
        }
        self._like = [copy.deepcopy(like, memo)]  # in a list, so that it is no submodule
        self._product = PackedProduct(Tiling.of(self.shape, self.dim, pattern))
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
    def pattern(self) -> NMPattern:
        """N kept of M."""
        return self.tiling.pattern

    @property
    def tiling(self) -> Tiling:
        """How the weight is stored."""
        return self._product.tiling

    @property
    def weight(self) -> Tensor:
        """The dense weight, unpacked anew each time, in the dtype of the values."""
        return from_rows(unpack_rows(self.values, self.indices, self.tiling), self.shape, self.dim)

    def product(self, x: Tensor) -> Tensor:
        """Returns ``x @ rowsᵀ + bias`` for inputs of shape (…, columns)."""
        # By torch's dictionaries, since looking attributes up takes as long as a small product.
        buffers: dict[str, Any] = self._buffers
        return self._product(x, buffers["values"], buffers["indices"], self._parameters["bias"])

    def dense(self) -> nn.Module:
        """Returns the dense layer, in the dtype that it had or the model was cast to; its bias shares memory."""
        module = copy.deepcopy(self.like)
        weight = self.weight.to(self.get_buffer("_dtype").dtype)
        needs_grad = self.like.get_parameter("weight").requires_grad
        module.register_parameter("weight", nn.Parameter(weight, needs_grad))
        module.register_parameter("bias", None if self.bias is None else _sharing(self.bias))
        return module.train(self.training)

    def extra_repr(self) -> str:
        """Returns the dense layer's settings, the pattern, and what values are held in."""
        own = self.like.extra_repr() or f"nf={self.tiling.rows}, nx={self.tiling.columns}"
        return f"{own}, pattern={self.pattern}, dtype={self.values.dtype}"


def _sharing(parameter: nn.Parameter) -> nn.Parameter:
    """Returns a parameter of the same memory, which casting the other does not change."""
    return nn.Parameter(parameter.detach(), parameter.requires_grad)


class PackedLinear(PackedLayer):
    """A Linear, or a transformers Conv1D, whose weight is packed: ``y = x @ weightᵀ + bias``, x of (…, inputs)."""

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.tiling.columns

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.tiling.rows

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for it
        """Returns the product.

        Raises:
            ValueError: the input is not floating, or its last dimension is not the layer's number of inputs.
        """
        return self.product(input)


class PackedConv(PackedLayer):
    """A Conv1d or Conv2d of one group whose weight is packed; x of shape (batch, channels, …) or (channels, …).

    The windows of the input are laid out as rows for the packed product. Outputs of a Conv2d are channels_last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution.

        Raises:
            ValueError: ``x`` has another number of dimensions or channels than the layer takes.
        """
        like = self.like
        assert isinstance(like, (nn.Conv1d, nn.Conv2d))
        space = len(like.kernel_size)
        if x.dim() not in (space + 1, space + 2) or x.shape[-space - 1] != like.in_channels:
            raise ValueError(
                f"a packed convolution of {like.in_channels} channels got shape {tuple(x.shape)}, expected "
                f"(batch, {like.in_channels}{', …' * space})"
            )
        batch = x if x.dim() == space + 2 else x[None]
        y = self.product(_windows(batch, like)).movedim(-1, 1)
        return y if x.dim() == space + 2 else y[0]


def _windows(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """Returns the inputs of each output, shape (batch, …, inputs), ordered by place and then by channel."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    if any(conv._reversed_padding_repeated_twice):
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    x = x.movedim(1, -1).contiguous()
    space = len(conv.kernel_size)
    reach = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    out = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, conv.stride, strict=True)]
    if min(out) < 1:
        raise ValueError(
            f"a window of {tuple(reach)} does not fit into an input of {tuple(x.shape[1:-1])}, padding included"
        )
    steps = x.stride()[1:-1]
    strides = [
        x.stride(0),
        *(step * s for step, s in zip(steps, conv.stride, strict=True)),
        *(step * d for step, d in zip(steps, conv.dilation, strict=True)),
        1,
    ]
    windows = x.as_strided([x.shape[0], *out, *conv.kernel_size, x.shape[-1]], strides)
    return windows.reshape(x.shape[0], *out, math.prod(windows.shape[1 + space :]))
