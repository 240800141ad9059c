"""Loss and score shared by the image classification tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.tasks.task import device_of


def classification_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy in nats of (batch, classes) logits, on the model's device."""
    device = device_of(model)
    return F.cross_entropy(model(inputs.to(device)).float(), targets.to(device))


def classification_scores(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 500,
) -> dict[str, float]:
    """Returns the mean "loss" (nats) and "accuracy" (percent) over all examples.

    Losses are summed in float64 over chunks of `chunk` examples. A tie between logits goes to the class that
    `torch.argmax` picks.

    Args:
        model: maps inputs to logits (batch, classes).
        inputs: (examples, ...).
        targets: int64 (examples,).
        prepare: applied to each chunk of inputs on the model's device, such as a normalisation.
        chunk: examples a forward pass.
    """
    device = device_of(model)
    loss = torch.zeros((), dtype=torch.float64)
    correct = 0
    for start in range(0, len(targets), chunk):
        labels = targets[start : start + chunk].to(device)
        images = inputs[start : start + chunk].to(device)
        logits = model(images if prepare is None else prepare(images)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").double().cpu()
        correct += int((logits.argmax(dim=1) == labels).sum())
    return {"loss": loss.item() / len(targets), "accuracy": 100.0 * correct / len(targets)}
