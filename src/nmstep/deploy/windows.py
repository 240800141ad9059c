"""The windows of a convolution's input, as rows that a weight is multiplied with."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Images"]


class Images:
    """A batch as a convolution reads it: padded, with the channels of a place side by side.

    Args:
        x: shape (batch, channels, …).
        conv: Conv1d or Conv2d of as many dimensions.

    Raises:
        ValueError: no window fits.
    """

    def __init__(self, x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> None:
        self.conv = conv
        self.padded = _padded(x, conv)
        reach = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        size = self.padded.shape[1:-1]
        #: How many outputs there are, along each dimension.
        self.outputs = [(n - r) // s + 1 for n, r, s in zip(size, reach, conv.stride, strict=True)]
        if min(self.outputs) < 1:
            raise ValueError(
                f"a window of {tuple(reach)} does not fit into an input of {tuple(size)}, padding included"
            )

    @property
    def windows(self) -> tuple[int, ...]:
        """Where windows lie in memory, as :meth:`nmstep.kernels.packed.PackedProduct.of_images` takes it."""
        conv, (image, *steps, _) = self.conv, self.padded.stride()
        lines = [1] * (2 - len(steps))  # a Conv1d is one line of an image
        no_steps = [0] * (2 - len(steps))
        across = [step * s for step, s in zip(steps, conv.stride, strict=True)]
        taps = [step * d for step, d in zip(steps, conv.dilation, strict=True)]
        return (
            *lines,
            *self.outputs,
            image,
            *no_steps,
            *across,
            conv.kernel_size[-1],
            conv.in_channels,
            *no_steps,
            *taps,
        )

    def rows(self) -> Tensor:
        """Returns the inputs of each output, shape (batch, …, inputs), ordered by place and then by channel."""
        conv, (image, *steps, _) = self.conv, self.padded.stride()
        strides = [
            image,
            *(step * s for step, s in zip(steps, conv.stride, strict=True)),
            *(step * d for step, d in zip(steps, conv.dilation, strict=True)),
            1,
        ]
        shape = [self.padded.shape[0], *self.outputs, *conv.kernel_size, conv.in_channels]
        windows = self.padded.as_strided(shape, strides)
        return windows.reshape(self.padded.shape[0], *self.outputs, math.prod(shape[1 + len(steps) :]))


def _padded(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """Returns a batch of shape (batch, …, channels) with its padding, contiguous."""
    padding = conv._reversed_padding_repeated_twice
    if not any(padding):
        return x.movedim(1, -1).contiguous()
    if conv.padding_mode != "zeros":
        return F.pad(x, padding, mode=conv.padding_mode).movedim(1, -1).contiguous()
    before, after = padding[::2][::-1], padding[1::2][::-1]
    size = [n + low + high for n, low, high in zip(x.shape[2:], before, after, strict=True)]
    padded = x.new_zeros(x.shape[0], *size, x.shape[1])
    inner = padded[(slice(None), *(slice(low, low + n) for low, n in zip(before, x.shape[2:], strict=True)))]
    inner.copy_(x.movedim(1, -1))
    return padded
