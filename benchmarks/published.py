"""SR-STE and ASP the way their published code does them, as opponents.

The operations are those of NM-sparsity's ``devkit/sparse_ops`` and of ``apex.contrib.sparsity.asp``.
"""

from __future__ import annotations

from typing import Any

import torch
from methods import LR
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

import nmstep
from nmstep import NMPattern

__all__ = ["argsort_mask", "asp", "sr_ste"]


def sr_ste(model: nn.Module, pattern: str) -> Optimizer:
    """Attaches SR-STE: each layer chooses its mask anew in every forward pass, and decays in the backward pass."""
    for entry in nmstep.plan(model, pattern).sparse:
        layer, _, name = entry.name.rpartition(".")
        masked = _Masked(NMPattern.parse(pattern), entry.dim or 0)
        parametrize.register_parametrization(model.get_submodule(layer), name, masked)
    return torch.optim.AdamW(model.parameters(), lr=LR, fused=True)


def asp(model: nn.Module, pattern: str) -> Optimizer:
    """Attaches ASP: torch's step, with gradients masked before it and weights after it, by masks chosen once."""
    plan = nmstep.plan(model, pattern)
    parameters = plan.resolve(model)
    pairs = [
        (parameters[entry.name], nmstep.nm_mask(parameters[entry.name], pattern, dim=entry.dim or 0))
        for entry in plan.sparse
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    @torch.no_grad()
    def mask_gradients(*_: Any) -> None:
        for p, mask in pairs:
            if p.grad is not None:
                p.grad.mul_(mask)

    @torch.no_grad()
    def mask_weights(*_: Any) -> None:
        for p, mask in pairs:
            p.mul_(mask)

    mask_weights()
    optimizer.register_step_pre_hook(mask_gradients)
    optimizer.register_step_post_hook(mask_weights)
    return optimizer


def argsort_mask(weight: Tensor, pattern: NMPattern, dim: int) -> Tensor:
    """Returns the mask as floats, by sorting every group and scattering zeros."""
    last = weight.detach().abs().movedim(dim, -1)
    groups = last.reshape(-1, pattern.m)
    smallest = groups.argsort(dim=1)[:, : pattern.m - pattern.n]
    ones = torch.ones(groups.shape, device=weight.device)
    return ones.scatter_(1, smallest, 0).reshape(last.shape).movedim(-1, dim)


class _Masked(nn.Module):
    """The weight that a layer's forward pass sees."""

    def __init__(self, pattern: NMPattern, dim: int) -> None:
        super().__init__()
        self.pattern, self.dim = pattern, dim

    def forward(self, weight: Tensor) -> Tensor:
        masked: Tensor = _StraightThrough.apply(weight, self.pattern, self.dim)  # type: ignore[no-untyped-call]
        return masked


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, pattern: NMPattern, dim: int) -> Tensor:
        ctx.save_for_backward(weight)
        output = weight.clone()
        ctx.mask = argsort_mask(weight, pattern, dim)
        masked: Tensor = output * ctx.mask
        return masked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] + 2e-4 * (1 - ctx.mask) * weight, None, None
