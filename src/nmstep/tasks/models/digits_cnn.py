"""The network of the digits task."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three normalised 3 × 3 convolutions and a linear layer, for 8 × 8 images of one channel.

    Every layer but the first reads a multiple of 32 inputs, so that all patterns up to 1:32 fit; the first
    reads one channel and stays dense. 30,890 parameters, 30,496 of them weights.

    The batch norms matter to N:M learning, not only to speed: without them, a network that has all but fitted
    its training set has a variance so small that STEP's frozen phase overshoots when 1:16 masks come
    down on it (45, 90 and 96 % accuracy after 1,500 steps over three seeds, against 98 to 99 % with them).

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(64)
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, classes) for images (batch, 1, 8, 8)."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        hidden = F.max_pool2d(F.relu(self.norm2(self.conv2(hidden))), 2)
        hidden = F.max_pool2d(F.relu(self.norm3(self.conv3(hidden))), 2)
        logits: Tensor = self.head(hidden.flatten(1))
        return logits
