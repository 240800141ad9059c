"""The moments' own matters: held wider than their parameters, and where the steps that they are of are counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.optim.fused import FROZEN

__all__ = ["count_", "moment_dtype", "restore_", "steps_taken", "widen_", "widened"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def moment_dtype(p: Tensor, state_dtype: torch.dtype | None) -> torch.dtype:
    """Returns what the moments of ``p`` are held in: its own dtype, or ``state_dtype`` where that is wider.

    Example:
        >>> moment_dtype(torch.zeros(2, dtype=torch.bfloat16), torch.float32)
        torch.float32
    """
    return p.dtype if state_dtype is None else torch.promote_types(p.dtype, state_dtype)


def widen_(states: Iterable[tuple[Tensor, dict[str, Any]]], state_dtype: torch.dtype | None) -> bool:
    """Widens moments that torch has just made or cast, and returns whether there were any.

    A frozen second moment stays in what it was frozen to.

    Args:
        states: parameters with their states.
        state_dtype: of the optimizer.
    """
    found = False
    for p, state in states if state_dtype is not None else ():
        dtype = moment_dtype(p, state_dtype)
        for key in _MOMENTS:
            if key in state and state[key].dtype == p.dtype != dtype and not _is_frozen(state, key):
                state[key], found = state[key].to(dtype), True
    return found


@contextmanager
def widened(batch: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Gives a batch's parameters and gradients as wide as their first moments, for the time of a step.

    Args:
        batch: the columns (p, grad, exp_avg, …) of a step.

    Yields:
        The columns; what was stepped in a wider dtype is rounded into the parameters afterwards.
    """
    params, grads, exp_avgs = batch[:3]
    if all(p.dtype == m.dtype for p, m in zip(params, exp_avgs, strict=True)):
        yield batch
        return
    dtypes = [torch.promote_types(p.dtype, m.dtype) for p, m in zip(params, exp_avgs, strict=True)]
    wide = [p.to(dtype) for p, dtype in zip(params, dtypes, strict=True)]
    yield [wide, [g.to(dtype) for g, dtype in zip(grads, dtypes, strict=True)], *batch[2:]]
    for p, stepped in zip(params, wide, strict=True):
        if stepped is not p:
            p.copy_(stepped)


def restore_(optimizer: Optimizer, loaded: dict[str, Any], state_dtype: torch.dtype | None) -> None:
    """Puts back the moments that torch cast to their parameter's dtype when it loaded them.

    Args:
        optimizer: after loading.
        loaded: the state dict that it took.
        state_dtype: of the optimizer.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in loaded["param_groups"] for index in group["params"]]
    for p, index in zip(params, indices, strict=True):
        dtype = moment_dtype(p, state_dtype)
        state, saved = optimizer.state.get(p, {}), loaded["state"].get(index, {})
        for key in _MOMENTS:
            value = saved.get(key)
            if isinstance(value, Tensor) and key in state and value.dtype == dtype != p.dtype:
                state[key] = value.to(p.device, copy=True)


def count_(state: dict[str, Any], device: torch.device) -> None:
    """Moves a parameter's counter of steps to where they are counted, as fp32 if that is not the host."""
    step: Tensor = state["step"]
    state["step"] = step.cpu() if device.type == "cpu" else step.to(device, torch.float32)


def steps_taken(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """Returns a parameter's steps so far: a number, or a float64 tensor where they are counted on a device."""
    return state["step"].double() if group["capturable"] else float(state["step"])


def _is_frozen(state: dict[str, Any], key: str) -> bool:
    return key == "exp_avg_sq" and FROZEN in state
