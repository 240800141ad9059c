"""Ways to train a model, each attached to it with its optimizer as a user would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import nmstep
from nmstep import Recipe, SwitchAt, kernels

__all__ = ["LR", "Method", "autoswitch", "frozen", "frozen_narrow", "nmstep_adamw", "torch_adamw", "updated"]

Method = Callable[[nn.Module, str], Optimizer]
LR = 1e-4


def torch_adamw(*, fused: bool | None = None, foreach: bool | None = None) -> Method:
    """Returns dense training with torch's own AdamW, of the kind asked for."""

    def attach(model: nn.Module, pattern: str) -> Optimizer:
        del pattern
        return torch.optim.AdamW(model.parameters(), lr=LR, fused=fused, foreach=foreach)

    return attach


def nmstep_adamw(
    recipe: Callable[[str], Recipe], *, fused: bool = False, capturable: bool = False, **options: Any
) -> Method:
    """Returns training with nmstep's AdamW and a sparsifier.

    Args:
        recipe: takes the pattern.
        fused: ask for the compiled kernels in the dense phase too, where they are.
        capturable: so that a CUDA graph can hold the step.
        options: of :func:`nmstep.sparsify`.
    """
    wanted = True if fused and kernels.status().active != "torch" else None

    def attach(model: nn.Module, pattern: str) -> Optimizer:
        optimizer = nmstep.AdamW(model.parameters(), lr=LR, fused=wanted, capturable=capturable)
        nmstep.sparsify(model, optimizer, recipe(pattern), **options)
        return optimizer

    return attach


def autoswitch(pattern: str) -> Recipe:
    """Returns STEP in its dense phase, which does not end here."""
    return nmstep.STEP(pattern, total_steps=10**9)


def frozen(pattern: str) -> Recipe:
    """Returns STEP in its sparse phase, from the second step on."""
    return nmstep.STEP(pattern, switch=SwitchAt(1))


def frozen_narrow(pattern: str) -> Recipe:
    """Returns the same with the frozen variance in bfloat16."""
    return nmstep.STEP(pattern, switch=SwitchAt(1), preconditioner_dtype=torch.bfloat16)


def updated(pattern: str) -> Recipe:
    """Returns STEP's sparse phase with the variance updated."""
    return nmstep.STEP(pattern, switch=SwitchAt(1), freeze_variance=False)
