"""A look at the gradients before a step: is it one, and are they finite?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["OnNonfinite", "has_gradients", "is_idle", "nonfinite"]

OnNonfinite = Literal["raise", "skip", "ignore"]


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any parameter has a gradient; without one, a step is none."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def is_idle(optimizer: Optimizer) -> bool:
    """Whether a step would be none: a learning rate of 0 on zero gradients.

    Checkpoint code takes such a step to make the optimizer create its state. The gradients are read
    only where the learning rate is 0.
    """
    if any(float(group["lr"]) != 0.0 for group in optimizer.param_groups):
        return False
    return not any(bool(g.any()) for _, g in _named_gradients(optimizer, {}))


def nonfinite(optimizer: Optimizer, names: Mapping[int, str]) -> list[str]:
    """Returns the names of the parameters whose gradient holds a NaN or an infinity.

    Args:
        optimizer: with gradients in place; sparse and empty ones are passed over.
        names: a name for the id of a parameter, where one is known.
    """
    gradients = _named_gradients(optimizer, names)
    if not gradients:
        return []
    # A sum passes NaN and infinity on, and is by far the cheapest look; it may overflow or cancel to NaN where
    # all is finite but huge, so only a second look at each entry accuses.
    sums = [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)).float() for _, g in gradients]
    if bool(torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all()):
        return []
    return [name for name, g in gradients if not bool(g.isfinite().all())]


def _named_gradients(optimizer: Optimizer, names: Mapping[int, str]) -> list[tuple[str, Tensor]]:
    found = []
    for g, group in enumerate(optimizer.param_groups):
        given = group.get("param_names", ())
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.grad.numel() and p.grad.layout == torch.strided:
                fallback = given[i] if i < len(given) else f"parameter {i} of group {g}"
                grad = torch.view_as_real(p.grad) if p.grad.is_complex() else p.grad
                found.append((names.get(id(p), fallback), grad))
    return found
