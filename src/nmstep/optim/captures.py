"""Which steps can be captured in a CUDA graph, and what a graph bakes in, which replays must find again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.kernels.native import engine_for
from nmstep.optim.fused import KernelStep
from nmstep.optim.settings import PRUNED
from nmstep.shards import is_sharded

if TYPE_CHECKING:
    from nmstep.optim.adamw import AdamW

__all__ = ["baked_in", "check_capture", "read_by_a_step"]

_SETTINGS = ("betas", "eps", "eps_root", "weight_decay", "maximize", "decoupled_weight_decay")


def check_capture(optimizer: Optimizer, closure: object, *, around: str | None = None) -> None:
    """Checks that a step which is being captured is one that a graph can hold.

    Args:
        optimizer: whose step.
        closure: what the step was given.
        around: why what surrounds the step cannot be captured with it, or None.

    Raises:
        RuntimeError: it is not.
    """
    why = _why_not(optimizer, closure) or around
    if why is None:
        adamw = cast("AdamW", optimizer)
        why = adamw.kernels.why_not_captured(adamw)
    if why is not None:
        raise RuntimeError(
            f"this step cannot be captured in a CUDA graph: {why}. Nothing was captured of it; see 'CUDA graphs' "
            f"in the guide to your own loop, or capture the forward and backward pass and step after the replay"
        )


def baked_in(optimizer: Optimizer) -> dict[str, Any]:
    """Returns what the graph of a step that is captured now cannot see change, by what to call it."""
    groups = optimizer.param_groups
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in read_by_a_step(optimizer)]
    return {
        "the learning rate": [_rate(group["lr"]) for group in groups],
        "a setting of a parameter group": [[group[name] for name in _SETTINGS] for group in groups],
        "where a parameter or its state lies": addresses,
    }


def _why_not(optimizer: Optimizer, closure: object) -> str | None:
    groups = optimizer.param_groups
    held = [(group, p) for group in groups for p in group["params"] if p.grad is not None]
    devices = {p.device for _, p in held}
    if not isinstance(getattr(optimizer, "kernels", None), KernelStep):
        return f"{type(optimizer).__name__} is not nmstep.AdamW, whose kernels can do a whole step"
    if not all(group["capturable"] for group in groups):
        return "the optimizer was made without capturable=True, so its numbers come from the host"
    if closure is not None:
        return "it was given a closure; run the forward and backward pass before it"
    if any(getattr(optimizer, name, None) is not None for name in ("found_inf", "grad_scale")):
        return "a gradient scaler wants the host to look at the gradients first"
    if not held:
        return "no parameter has a gradient"
    if len(devices) > 1 or any(is_sharded(p) for _, p in held):
        return "the parameters lie on several devices, or are DTensors"
    return _why_not_on(next(iter(devices)), groups)


def _why_not_on(device: torch.device, groups: list[dict[str, Any]]) -> str | None:
    for group in groups:
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device != device:
            return f"the learning rate is a tensor on {lr.device}, and the parameters are on {device}"
        if any(isinstance(beta, Tensor) for beta in group["betas"]):
            return "betas are tensors, which the host would have to read"
    return None if engine_for(device) == "triton" else f"there are no kernels in Triton for {device}"


def _rate(lr: float | Tensor) -> float | tuple[str, int]:
    return ("a tensor at", lr.data_ptr()) if isinstance(lr, Tensor) else lr


def read_by_a_step(optimizer: Optimizer) -> Iterator[Tensor | None]:
    """Yields what a step reads and writes, but gradients, which the graph's own backward pass may make."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            state: dict[str, Tensor] = optimizer.state.get(p, {})
            yield p
            for key in ("step", "exp_avg", "exp_avg_sq", PRUNED):
                yield state.get(key)
