"""One step of Adam by the kernels and by the formulas, and a small net to train, for the tests of the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import kernels, masks
from nmstep.kernels.native import are_taken


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


def same_bits(a: Tensor, b: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.view(integers), b.view(integers))


def check_masks(weight: Tensor, pattern: str, dim: int, pad: bool = True) -> None:
    """Asserts that the kernels choose and split as plain torch does, to the bit."""
    assert are_taken(weight)
    expected = masks.nm_mask(weight, pattern, dim=dim, pad=pad)
    assert torch.equal(kernels.nm_mask(weight, pattern, dim=dim, pad=pad), expected)
    ours, theirs = weight.clone(), weight.clone()
    cut = kernels.split_(ours, pattern, dim=dim, pad=pad)
    assert same_bits(cut, masks.split_(theirs, pattern, dim=dim, pad=pad))
    assert same_bits(ours, theirs)
    assert cut.stride() == weight.stride()


def check_sparse_step(start: tuple[Tensor, ...], pattern: str, dim: int, frozen: float | None) -> None:
    """Asserts that a sparse step is a dense one on the latent weight, and a split."""
    w, m, v, g = start
    latent, m2, v2 = w.clone(), m.clone(), v.clone()
    pruned = masks.split_(w, pattern, dim=dim, pad=True)
    cut = kernels.Cut(pruned=pruned, pattern=nmstep.NMPattern.parse(pattern), dim=dim)
    ours = step_(GROUP, w, g, m, v, step=3, frozen_eps_root=frozen, cut=cut, sums=True)
    dense = step_(GROUP, latent, g, m2, v2, step=3, frozen_eps_root=frozen, sums=True)
    assert torch.equal(m, m2)
    assert torch.equal(v, v2)
    assert torch.equal(w + pruned, latent)
    assert torch.equal(pruned, masks.split_(latent, pattern, dim=dim, pad=True))
    assert torch.equal(w, latent)
    assert ours == pytest.approx(dense, rel=1e-5)
