"""What a task is: data, a model and a metric, behind five methods."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "cosine", "linear", "inverse-sqrt"]


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """Returns the training settings that a task suggests; a runner may override each.

    Args:
        steps: optimizer steps of one run, at least 1.
        batch_size: examples a step, at least 1.
        lr: learning rate of Adam or AdamW, above 0.
        weight_decay: decoupled weight decay, at least 0.
        schedule: learning rate after the warm-up.
        warmup: optimizer steps over which the learning rate rises, at least 0.
        include: names or globs of the parameters that the task's sparse layers have; none for all that a
            plan would choose.

    Raises:
        ValueError: if a value is outside its range.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Schedule = "constant"
    warmup: int = 0
    include: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, lowest in (("steps", 1), ("batch_size", 1), ("weight_decay", 0), ("warmup", 0)):
            value = getattr(self, name)
            if not value >= lowest:
                raise ValueError(f"{name}={value!r} is too small: it must be at least {lowest}")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr!r} is too small: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Returns the examples of one step.

    Args:
        inputs: what the model's forward takes; the first dimension is the batch.
        targets: class, token or byte per prediction (int64), or the value to predict (float32).
        extras: further arguments of the model's forward by name, such as an attention mask.
    """

    inputs: Tensor
    targets: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """Returns this batch on `device`; tensors already there are shared, not copied."""
        return Batch(
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
            extras={name: tensor.to(device) for name, tensor in self.extras.items()},
        )


class Task(ABC):
    """A workload that a runner can train and score.

    A task holds data and no training state: `batch` is a pure function of its arguments, so a run that
    stopped after step k resumes by asking for step k, and nothing about the loader has to be saved.

    Attributes:
        name: the name that `nmstep.tasks.load` knows it by.
        metric: the key in `evaluate`'s answer that results are reported by.
        higher_is_better: whether more of the metric is better: True for accuracy, False for perplexity.
        defaults: suggested training settings.
    """

    name: str
    metric: str
    higher_is_better: bool = True
    defaults: TaskDefaults

    @abstractmethod
    def model(self) -> nn.Module:
        """Returns a new model, in float32 on the CPU and in training mode.

        What is not pretrained is drawn from torch's global random generator.
        """

    @abstractmethod
    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns the batch of one step: the same one whenever, and in whatever order, it is asked for.

        The training examples are an endless stream of epochs, each a fresh shuffle that depends on `seed`
        alone; step k takes its places k * batch_size to (k + 1) * batch_size - 1. Every batch is full: one
        may hold the end of an epoch and the start of the next. torch's global generator is not touched.

        Args:
            step: optimizer steps taken before this one, from 0.
            seed: chooses the order and the augmentation.
            batch_size: examples in the batch, at least 1.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean training loss of `batch`, a scalar; the batch is moved to the model's device."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns the mean "loss" (nats) and the task's metric over the held-out data.

        Runs without gradients and in evaluation mode; every submodule's training mode is put back after.
        """
        with evaluation_mode(model), torch.no_grad():
            return self._evaluate(model)

    @abstractmethod
    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns what `evaluate` does, called in evaluation mode and without gradients."""


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode for a `with` block, then each submodule back in the mode it had.

    >>> import torch.nn as nn
    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    >>> _ = model[1].eval()
    >>> with evaluation_mode(model):
    ...     model.training
    False
    >>> model.training, model[0].training, model[1].training
    (True, True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the model's first parameter; the CPU for a model without parameters."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
