"""Residual networks for 32 × 32 images: ResNet-20 and ResNet-18."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class PadShortcut(nn.Module):
    """He et al.'s option A: subsample, then add zero channels on both sides; no parameters.

    Args:
        inputs: channels in.
        outputs: channels out; outputs - inputs is even.
        stride: rows and columns kept, one in `stride`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, outputs, ceil(height / stride), ceil(width / stride))."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.added, self.added))


def _projection_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Returns option B: a 1 × 1 convolution with a norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with norms, added to a shortcut.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution.
        shortcut: the module on the side path; the identity where shapes agree.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, outputs, height / stride, width / stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class _ResNet(nn.Module):
    """A 3 × 3 stem without pooling, stages that halve the image, a global mean and a linear layer."""

    def __init__(self, widths: tuple[int, ...], blocks: int, classes: int, *, pad_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        make_shortcut = PadShortcut if pad_shortcut else _projection_shortcut
        stages, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            layers = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                changes = stride != 1 or inputs != width
                shortcut = make_shortcut(inputs, width, stride) if changes else nn.Identity()
                layers.append(BasicBlock(inputs, width, stride, shortcut))
                inputs = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, classes) for images (batch, 3, 32, 32)."""
        hidden = self.stages(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(hidden.mean(dim=(2, 3)))
        return logits


class ResNet20(_ResNet):
    """He et al.'s CIFAR network: three stages of three blocks, 16, 32 and 64 channels, option-A shortcuts.

    269,722 parameters with 10 classes. The first stage has 16 channels, too few for 1:32.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__((16, 32, 64), 3, classes, pad_shortcut=True)


class ResNet18(_ResNet):
    """ResNet-18 with a CIFAR stem: four stages of two blocks, 64 to 512 channels, 1 × 1 shortcuts.

    11,173,962 parameters with 10 classes.

    Source: He et al. (2016), table 1.
    Deviation: the stem is a 3 × 3 convolution of stride 1 without max-pooling, as is usual for 32 × 32.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__((64, 128, 256, 512), 2, classes, pad_shortcut=False)
