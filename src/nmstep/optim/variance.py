"""Sums over Adam's second moment that AutoSwitch and the trace read, for any optimizer that keeps one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.optim.adamw import FROZEN
from nmstep.shards import aligned, copies, local

__all__ = ["change_sums", "coordinates", "has_variance", "largest_beta2", "norm_sums"]


def coordinates(optimizer: Optimizer) -> int:
    """Returns d, the number of coordinates that the optimizer holds."""
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def has_variance(optimizer: Optimizer) -> bool:
    """Whether the optimizer is of the Adam family: it keeps ``exp_avg_sq`` by Adam's recursion."""
    return isinstance(optimizer, (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam))


def largest_beta2(optimizer: Optimizer) -> float:
    """Returns the largest β2 of the optimizer's groups; Adam's default where none has one."""
    return max((float(g["betas"][1]) for g in optimizer.param_groups if "betas" in g), default=0.999)


@torch.no_grad()
def change_sums(optimizer: Optimizer, *, geometric: bool, ranks: int = 1) -> Tensor:
    """Returns ``[Σ|v_t − v_{t−1}|, Σ log|v_t − v_{t−1}|, coordinates that change]``, before the step is taken.

    No copy of v is needed, since ``v_t − v_{t−1} = (1 − β2)(g² − v_{t−1})``. Sums of one parameter run in
    fp32 at least, sums over parameters in fp64.

    Args:
        optimizer: of the Adam family, with gradients in place.
        geometric: fill the last two entries; zero otherwise.
        ranks: processes that hold the model together. Each sums up its own share: what it holds of a parameter,
            divided by the number of ranks that hold the same.
    """
    rows = [
        _change(group, p, optimizer.state.get(p, {}), geometric) / copies(p, ranks)
        for group, p in _with_gradient(optimizer)
    ]
    return _total(rows, 3)


@torch.no_grad()
def norm_sums(optimizer: Optimizer, *, ranks: int = 1) -> Tensor:
    """Returns ``[‖v‖₁, ‖v‖₂²]`` over all coordinates, or this rank's share of them."""
    rows = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            v = optimizer.state.get(p, {}).get("exp_avg_sq")
            if v is not None:
                v = local(v)
                v = v if v.dtype == torch.float64 else v.float()
                sums = torch.stack([v.sum(), torch.linalg.vector_norm(v).square()])
                rows.append(sums / copies(p, ranks))
    return _total(rows, 2)


def _with_gradient(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor]]:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and FROZEN not in optimizer.state.get(p, {}):
                yield group, p


def _change(group: dict[str, Any], p: Tensor, state: dict[str, Any], geometric: bool) -> Tensor:
    assert p.grad is not None
    grad = local(aligned(p.grad, p))
    if group["weight_decay"] != 0 and not group.get("decoupled_weight_decay", False):
        decay = group["weight_decay"]
        grad = grad.add(local(p), alpha=-decay if group.get("maximize") else decay)
    grad = grad if grad.dtype == torch.float64 else grad.float()
    v = None if "exp_avg_sq" not in state else local(state["exp_avg_sq"])
    delta = grad.square() if v is None else torch.addcmul(v.to(grad.dtype), grad, grad, value=-1)
    delta.abs_()
    if not geometric:
        total = delta.sum() * (1 - float(group["betas"][1]))
        return torch.stack([total, torch.zeros_like(total), torch.zeros_like(total)])
    delta.mul_(1 - float(group["betas"][1]))
    changed = delta > 0
    logs = torch.where(changed, delta, 1).log()
    return torch.stack([delta.sum(), logs.sum(), changed.sum().to(delta.dtype)])


def _total(rows: list[Tensor], width: int) -> Tensor:
    if not rows:
        return torch.zeros(width, dtype=torch.float64)
    device = rows[0].device
    return torch.stack([row.to(device, torch.float64) for row in rows]).sum(0)
