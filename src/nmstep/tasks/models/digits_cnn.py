"""The network of the digits task."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three 3 × 3 convolutions and two linear layers for 8 × 8 images of one channel.

    Every layer but the first reads a multiple of 32 inputs, so that all patterns up to 1:32 fit; the first
    reads one channel and stays dense. 62,250 parameters, 61,984 of them weights. No norm layers.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(256, 128)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, classes) for images (batch, 1, 8, 8)."""
        hidden = F.max_pool2d(F.relu(self.conv1(x)), 2)
        hidden = F.relu(self.conv3(F.relu(self.conv2(hidden))))
        hidden = F.max_pool2d(hidden, 2, ceil_mode=True)
        logits: Tensor = self.fc2(F.relu(self.fc1(hidden.flatten(1))))
        return logits
