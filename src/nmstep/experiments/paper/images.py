"""Image workloads: digits, and CIFAR with the paper's networks or a small one."""

from __future__ import annotations

from typing import Any

from nmstep.experiments.options import RecipeOptions
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = ["cifar", "digits", "images"]

PATTERNS = ("2:4", "1:4", "1:8", "1:16")

# 1 / (1 - beta2) = 1,000 steps of window do not fit into runs this short; see docs/results/digits.md.
_SHORT = RecipeOptions(window=50, clip=(0.1, 0.2))
_SHORT_OPTIONS = {"asp": RecipeOptions(start=0.5), "step": _SHORT, "step-updated": _SHORT}


def images(scope: Scope) -> tuple[Workload, ...]:
    """Returns the image workloads of a scale."""
    if scope.scale == "cpu":
        return digits(scope), cifar(scope, 10, "resnet20")
    return tuple(cifar(scope, kind, model) for model in ("resnet18", "densenet121") for kind in (10, 100))


def digits(scope: Scope) -> Workload:
    """Returns handwritten digits of 8 × 8 pixels: 600 steps of a small network, a quarter of a minute."""
    settings: dict[str, Any] = {"steps": 600, "schedule": "cosine", "checkpoint_every": 300}
    return Workload(
        name="digits",
        title="Digits",
        settings={"task": "digits", "device": scope.device, "threads": 1, **settings},
        seeds=scope.seeds or (0, 1, 2, 3, 4),
        patterns=PATTERNS,
        options=_SHORT_OPTIONS,
    )


def cifar(scope: Scope, kind: int, model: str) -> Workload:
    """Returns CIFAR-10 or -100 with one of the networks.

    Args:
        scope: the scale decides the length and the learning rate.
        kind: 10 or 100 classes.
        model: a network of the task.
    """
    name = f"cifar{kind}"
    folder = {10: "cifar-10-batches-py", 100: "cifar-100-python"}[kind]
    settings: dict[str, Any] = {
        "task": name,
        "data": scope.place(folder, f"uoft-cs/{name}"),
        "device": scope.device,
        "schedule": "cosine",
    }
    if scope.scale == "cpu":
        settings |= {
            "task_options": {"model": model, "test_subset": 5000},
            "steps": 600,
            "batch_size": 32,
            "lr": 2e-3,
            "precision": "bf16",
            "eval_every": 200,
            "checkpoint_every": 200,
            "threads": 1,
        }
    else:
        settings |= {"task_options": {"model": model}, "steps": 200 * 391, "batch_size": 128, "lr": 1e-4}
    labels = {"resnet20": "ResNet-20", "resnet18": "ResNet-18", "densenet121": "DenseNet-121"}
    return Workload(
        name=f"{name}-{model}",
        title=f"{labels[model]} on CIFAR-{kind}",
        settings=settings,
        seeds=scope.seeds or ((0, 1, 2) if scope.scale == "cpu" else (0, 1, 2, 3, 4)),
        patterns=PATTERNS,
        options=_SHORT_OPTIONS if scope.scale == "cpu" else {"asp": RecipeOptions(start=0.5)},
    )
