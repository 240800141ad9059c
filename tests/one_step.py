"""One step of Adam by the kernels and by the formulas, and a small net to train, for the tests of the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import nmstep
from nmstep import kernels


def reference_step(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, group: dict[str, Any], frozen: float | None
) -> None:
    """Adam in float64 by the formulas of the papers, in place."""
    beta1, beta2 = group["betas"]
    g = -g if group["maximize"] else g
    if group["decoupled_weight_decay"]:
        w.mul_(1 - group["lr"] * group["weight_decay"])
    else:
        g = g + group["weight_decay"] * w
    m.mul_(beta1).add_((1 - beta1) * g)
    if frozen is None:
        v.mul_(beta2).add_((1 - beta2) * g * g)
        root = (v / (1 - beta2**t) + group["eps_root"]).sqrt()
    else:
        root = (v + frozen).sqrt()
    w.sub_(group["lr"] * (m / (1 - beta1**t)) / (root + group["eps"]))


def step_(
    group: dict[str, Any], p: Tensor, grad: Tensor, m: Tensor, v: Tensor, *, sums: bool = False, **more: Any
) -> list[float] | None:
    update = kernels.Update(group=group, p=p, grad=grad, exp_avg=m, exp_avg_sq=v, **more)
    found = kernels.adam_step_([update], sums=sums)
    return None if found is None else found.tolist()


GROUP = {
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "eps_root": 0.0,
    "weight_decay": 0.1,
    "maximize": False,
    "decoupled_weight_decay": True,
}


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(6)
    device = next(model.parameters()).device
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 8, 4, 4, generator=generator).to(device)).square().mean().backward()
        optimizer.step()


RECIPES = {
    "step": lambda: nmstep.STEP("2:4", 30, switch=nmstep.AutoSwitch(window=5, clip=(0.1, 0.3))),
    "step, updated": lambda: nmstep.STEP("2:4", 30, switch=nmstep.SwitchAt(5), freeze_variance=False),
    "sr-ste": lambda: nmstep.SRSTE("1:4"),
    "decaying": lambda: nmstep.DecayingMask("1:8", 4, interval=6),
    "asp": lambda: nmstep.ASP("2:4", start=3),
    "dense": nmstep.Dense,
}

# What a step may be told: changes to GROUP, and the floor of a frozen variance.
SETTINGS: list[tuple[dict[str, Any], float | None]] = [
    ({}, None),
    ({"eps_root": 1e-6}, None),
    ({"decoupled_weight_decay": False}, None),
    ({"maximize": True, "weight_decay": 0.0}, None),
    ({"betas": (0.3, 0.5)}, None),
    ({}, 1e-8),
    ({"decoupled_weight_decay": False, "maximize": True}, 1e-3),
]
