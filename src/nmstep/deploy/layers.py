"""The layers that hold their weight packed: Linear, Conv1D and convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.deploy.layer import PackedLayer
from nmstep.deploy.windows import Images
from nmstep.kernels.packed import check_input
from nmstep.layout import reduction_dim
from nmstep.patterns import NMPattern
from nmstep.tiles import has_rows

__all__ = ["PackedConv", "PackedLinear", "packed_type"]


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
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)) or type(module) not in (nn.Conv1d, nn.Conv2d):
        return None
    # Kernels go by the settings, so a weight that was put there must be what they say.
    settings = (module.out_channels, module.in_channels, *module.kernel_size)
    return PackedConv if module.groups == 1 and tuple(weight.shape) == settings else None


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
        return self.run(input)

    def multiply(self, x: Tensor) -> Tensor:
        """Returns ``x @ weightᵀ + bias``."""
        return self.product(x)

    def multiply_dense(self, x: Tensor, weight: Tensor) -> Tensor:
        """Returns ``x @ weightᵀ + bias``."""
        check_input(x, self.tiling)
        weight, bias = self.in_dtype_of(x, weight)
        return F.linear(x, weight.t() if self.is_turned else weight, bias)


class PackedConv(PackedLayer):
    """A Conv1d or Conv2d of one group whose weight is packed; x of shape (batch, channels, …) or (channels, …).

    Outputs of a Conv2d are channels_last, and inputs in that order are not copied if they need no padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution.

        Raises:
            ValueError: ``x`` has another number of dimensions or channels than the layer takes.
        """
        like = self.conv
        space = len(like.kernel_size)
        fits = x.dim() in (space + 1, space + 2) and x.shape[-space - 1] == like.in_channels
        if not fits or not x.is_floating_point():
            raise ValueError(
                f"a packed convolution of {like.in_channels} channels got {x.dtype} of shape {tuple(x.shape)}, "
                f"expected floating numbers of shape (batch, {like.in_channels}{', …' * space})"
            )
        return self.run(x)

    @property
    def conv(self) -> nn.Conv1d | nn.Conv2d:
        """The dense layer without its values."""
        like = self.like
        assert isinstance(like, (nn.Conv1d, nn.Conv2d))
        return like

    def multiply(self, x: Tensor) -> Tensor:
        """Returns the convolution as a product of the packed weight and the windows of the input."""
        is_batch = x.dim() == len(self.conv.kernel_size) + 2
        images = Images(x if is_batch else x[None], self.conv)
        y = self._product.of_images(images.padded, images.windows, *self.parts[:3], self.bias)
        if y is None:
            y = self.product(images.rows())
        y = y.view(images.padded.shape[0], *images.outputs, self.tiling.rows).movedim(-1, 1)
        return y if is_batch else y[0]

    def multiply_dense(self, x: Tensor, weight: Tensor) -> Tensor:
        """Returns the convolution by torch's own."""
        y: Tensor = self.conv._conv_forward(x, *self.in_dtype_of(x, weight))
        return y
