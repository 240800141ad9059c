"""DenseNet for 32 × 32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Norm, ReLU, 1 × 1 convolution to 4 * growth channels, norm, ReLU, 3 × 3 convolution to `growth`.

    Args:
        inputs: channels in.
        growth: channels that the layer adds.
    """

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input with `growth` new channels after it."""
        hidden = self.conv1(F.relu(self.bn1(x)))
        added = self.conv2(F.relu(self.bn2(hidden)))
        return torch.cat([x, added], dim=1)


class Transition(nn.Module):
    """Norm, ReLU, 1 × 1 convolution and a 2 × 2 mean: fewer channels, half the image.

    Args:
        inputs: channels in.
        outputs: channels out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, outputs, height / 2, width / 2)."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Dense blocks joined by transitions that halve channels and image, a global mean and a linear layer.

    Source: Huang et al., "Densely Connected Convolutional Networks" (2017), DenseNet-BC.
    Deviation: the stem is one 3 × 3 convolution of stride 1 without norm or pooling, as is usual for 32 × 32.

    Args:
        blocks: layers in each dense block.
        growth: channels that each layer adds; the stem makes twice as many.
        classes: number of classes.
    """

    def __init__(self, blocks: Sequence[int], growth: int, classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for number, layers in enumerate(blocks):
            if number:
                stages.append(Transition(channels, channels // 2))
                channels //= 2
            stages += [DenseLayer(channels + layer * growth, growth) for layer in range(layers)]
            channels += layers * growth
        self.features = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, classes) for images (batch, 3, 32, 32)."""
        hidden = F.relu(self.bn(self.features(self.conv1(x))))
        logits: Tensor = self.fc(hidden.mean(dim=(2, 3)))
        return logits


def densenet121(classes: int = 10) -> DenseNet:
    """Returns DenseNet-121: blocks of 6, 12, 24 and 16 layers, growth 32.

    6,956,298 parameters with 10 classes.

    >>> sum(parameter.numel() for parameter in densenet121().parameters())
    6956298
    """
    return DenseNet((6, 12, 24, 16), 32, classes)
