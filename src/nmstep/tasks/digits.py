"""Digits: 1,797 handwritten digits that come with the package, and a small convolutional network."""

from __future__ import annotations

import functools
import gzip
from importlib import resources

import torch
from torch import Tensor, nn

from nmstep.tasks.classification import classification_loss, classification_scores
from nmstep.tasks.models.digits_cnn import DigitsCNN
from nmstep.tasks.order import EpochOrder
from nmstep.tasks.task import Batch, Task, TaskDefaults

_COUNT, _PIXELS = 1797, 64


class Digits(Task):
    """Classify 8 × 8 handwritten digits; no download, no optional package, seconds on one CPU core.

    The data are the test set of UCI's "Optical Recognition of Handwritten Digits", shipped whole. It is split
    in two, the same way always: within each class, in the file's order, every third example is held out. So
    1,201 examples train and 596 test, with the classes in proportion. The 13 writers are on both sides of
    the split, so scores here say nothing about digits of a new writer.

    Inputs are float32 (batch, 1, 8, 8), pixels scaled to mean 0 and deviation 1 by two constants. There is no
    augmentation. Accuracy is in percent of the 596; loss is their mean cross-entropy.
    """

    metric = "accuracy"

    def __init__(self) -> None:
        self.name = "digits"
        self.defaults = TaskDefaults(steps=1500, batch_size=64, lr=1e-3, weight_decay=0.0)
        images, labels = read_digits()
        inputs, held_out = normalise_digits(images), held_out_digits(labels)
        self._train = Batch(inputs=inputs[~held_out], targets=labels[~held_out])
        self._test = Batch(inputs=inputs[held_out], targets=labels[held_out])
        self._order = EpochOrder(len(self._train.targets))

    def model(self) -> nn.Module:
        """Returns a new `DigitsCNN` drawn from torch's global random generator."""
        return DigitsCNN()

    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns the batch of one step, as `Task.batch` describes.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        indices = self._order.indices(step, seed=seed, batch_size=batch_size)
        return Batch(inputs=self._train.inputs[indices], targets=self._train.targets[indices])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of `batch` in nats."""
        return classification_loss(model, batch.inputs, batch.targets)

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        return classification_scores(model, self._test.inputs, self._test.targets)


@functools.cache
def read_digits() -> tuple[Tensor, Tensor]:
    """Returns images, uint8 (1797, 8, 8) of values 0 to 16, and labels, int64 (1797,), in UCI's order."""
    packed = resources.files("nmstep.tasks").joinpath("data", "digits.bin.gz").read_bytes()
    values = torch.frombuffer(bytearray(gzip.decompress(packed)), dtype=torch.uint8)
    end = _COUNT * _PIXELS
    return values[:end].reshape(_COUNT, 8, 8), values[end:].long()


def normalise_digits(images: Tensor) -> Tensor:
    """Returns uint8 (count, 8, 8) images as float32 (count, 1, 8, 8), about zero mean and unit deviation.

    4.88 and 6.02 are mean and deviation of all pixels, in the data's unit: dots of a 4 × 4 block, 0 to 16.
    """
    return ((images.float() - 4.88) / 6.02).unsqueeze(1)


def held_out_digits(labels: Tensor) -> Tensor:
    """Returns a bool tensor like `labels`: True for the third, sixth, ... example of each class.

    >>> held_out_digits(torch.tensor([0, 0, 1, 0, 1, 1, 0])).int().tolist()
    [0, 0, 0, 1, 0, 1, 0]
    """
    one_hot = nn.functional.one_hot(labels)
    occurrence = one_hot.cumsum(dim=0).gather(1, labels.unsqueeze(1)).squeeze(1)
    return occurrence % 3 == 0
