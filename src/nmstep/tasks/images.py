"""Sets of small colour images: subsets, augmentation and normalisation in batched torch operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nmstep.tasks.order import generator

_PAD = 4


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Returns images with their classes.

    Args:
        images: uint8 (count, 3, height, width), RGB.
        labels: int64 (count,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def balanced_subset(labels: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Returns `count` indices: the first of a seeded shuffle that takes the classes in turn.

    Each class is shuffled, then the shuffle takes the first of every class, the second of every class, and so
    on, so that any count is as balanced as the classes allow, and a smaller subset is the start of a larger.

    Args:
        labels: int64 (examples,).
        count: examples wanted, 1 to len(labels).
        seed: chooses the shuffle.

    Raises:
        ValueError: if `count` is outside its range.

    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    >>> sorted(labels[balanced_subset(labels, 6)].tolist())
    [0, 0, 1, 1, 2, 2]
    """
    if not 1 <= count <= len(labels):
        raise ValueError(
            f"a subset of {count} cannot be taken of {len(labels)} examples: give 1 to {len(labels)}"
        )
    shuffled = torch.randperm(len(labels), generator=generator("subset", seed))
    one_hot = F.one_hot(labels[shuffled])
    turn = one_hot.cumsum(dim=0).gather(1, labels[shuffled].unsqueeze(1)).squeeze(1)
    return shuffled[torch.argsort(turn, stable=True)[:count]]


def crop_and_flip(images: Tensor, *, seed: int, step: int) -> Tensor:
    """Returns each image shifted by up to 4 pixels each way over black, and mirrored with probability 1/2.

    A pure function of its arguments.

    Args:
        images: uint8 (batch, channels, height, width).
        seed: of the run.
        step: optimizer steps taken before this one.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.
    """
    batch, _, height, width = images.shape
    random = generator("augment", seed, step)
    down, right = torch.randint(0, 2 * _PAD + 1, (2, batch, 1), generator=random)
    mirrored = torch.randint(0, 2, (batch, 1), generator=random).bool()
    rows = down + torch.arange(height)
    columns = right + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (_PAD, _PAD, _PAD, _PAD))
    picked = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def normalise(images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Returns float32 (images / 255 - mean) / std, per channel.

    Args:
        images: uint8 (batch, 3, height, width).
        mean: per channel, for values scaled to [0, 1].
        std: per channel, in the same unit.
    """
    centre = images.new_tensor(mean, dtype=torch.float32).view(3, 1, 1)
    spread = images.new_tensor(std, dtype=torch.float32).view(3, 1, 1)
    return (images.float() / 255 - centre) / spread
