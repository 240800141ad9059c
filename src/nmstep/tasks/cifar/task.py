"""CIFAR-10 and CIFAR-100 image classification."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor, nn

from nmstep.tasks.cifar.files import CIFAR10, CIFAR100, CifarSource, read_cifar
from nmstep.tasks.classification import classification_loss, classification_scores
from nmstep.tasks.images import ImageSet, balanced_subset, crop_and_flip, normalise
from nmstep.tasks.models.densenet import densenet121
from nmstep.tasks.models.resnet import ResNet18, ResNet20
from nmstep.tasks.order import EpochOrder
from nmstep.tasks.task import Batch, Task, TaskDefaults

ModelName = Literal["resnet20", "resnet18", "densenet121"]
_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": ResNet20,
    "resnet18": ResNet18,
    "densenet121": densenet121,
}
# All convolutions but the first: its three input channels make no groups of M.
_SPARSE: dict[str, tuple[str, ...]] = {
    "resnet20": ("stages.*",),
    "resnet18": ("stages.*",),
    "densenet121": ("features.*",),
}


class _Cifar(Task):
    metric = "accuracy"
    source: ClassVar[CifarSource]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]

    def __init__(
        self,
        data: str | None = None,
        *,
        model: ModelName = "resnet20",
        train_subset: int | None = None,
        test_subset: int | None = None,
        augment: bool = True,
    ) -> None:
        if model not in _MODELS:
            raise ValueError(f"unknown model {model!r}: choose {', '.join(map(repr, _MODELS))}")
        self.name = type(self).__name__.lower()
        self.defaults = TaskDefaults(
            steps=78_000, batch_size=128, lr=1e-3, weight_decay=5e-4, include=_SPARSE[model]
        )
        train, test = read_cifar(self.source, data)
        self._train = _subset(train, train_subset, "train_subset")
        self._test = _subset(test, test_subset, "test_subset")
        self._order = EpochOrder(len(self._train))
        self._augment = augment
        self._model_name = model

    def model(self) -> nn.Module:
        """Returns a new network of the chosen kind, drawn from torch's global random generator."""
        return _MODELS[self._model_name](self.source.classes)

    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns the batch of one step: float32 inputs (batch_size, 3, 32, 32), augmented and normalised.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        indices = self._order.indices(step, seed=seed, batch_size=batch_size)
        images = self._train.images[indices]
        if self._augment:
            images = crop_and_flip(images, seed=seed, step=step)
        return Batch(inputs=self._normalise(images), targets=self._train.labels[indices])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of `batch` in nats."""
        return classification_loss(model, batch.inputs, batch.targets)

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        return classification_scores(model, self._test.images, self._test.labels, prepare=self._normalise)

    def _normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)


class Cifar10(_Cifar):
    """Classify CIFAR-10: 50,000 training and 10,000 test images of 32 × 32 pixels in 10 classes.

    Training images are shifted by up to 4 pixels over black and mirrored at random; all are normalised with
    the training set's mean and deviation per channel. Accuracy is in percent of the test images.

    Args:
        data: a local folder or the hub name, as `nmstep.tasks.cifar.files.read_cifar` reads it.
        model: "resnet20", "resnet18" (with a CIFAR stem) or "densenet121" (likewise).
        train_subset: train on this many images only, balanced over the classes; the same ones in every run.
        test_subset: score on this many images only, likewise.
        augment: False to train on the images as they are.

    Raises:
        FileNotFoundError: if there is nothing at `data`.
        ValueError: if `data` is None or malformed, or an option is out of range.
        ImportError: if `data` needs `datasets` and it is not installed.
        ConnectionError: if the hub cannot be read.
    """

    source = CIFAR10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)


class Cifar100(_Cifar):
    """Classify CIFAR-100 by its 100 fine labels; everything else is as in `Cifar10`."""

    source = CIFAR100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


def _subset(images: ImageSet, count: int | None, option: str) -> ImageSet:
    if count is None:
        return images
    try:
        chosen = balanced_subset(images.labels, count)
    except ValueError as error:
        raise ValueError(f"{option}={count}: {error}") from None
    return ImageSet(images=images.images[chosen], labels=images.labels[chosen])
