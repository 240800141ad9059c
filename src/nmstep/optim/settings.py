"""What AdamW is not asked for, and what it makes of the settings in another AdamW's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["as_ours_", "hyperparameters", "refuse", "refuse_capture"]

_UNSUPPORTED = {
    "capturable": "leave it off: the frozen phase reads its step counter on the host",
    "differentiable": "leave it off: the step is not recorded by autograd",
    "fused": "give fused to the optimizer: its kernels take all groups or none",
}


def refuse(settings: Mapping[str, Any]) -> None:
    """Checks the settings of a group, or those that are of every group.

    Raises:
        ValueError: one is not supported there, or ``eps_root`` is negative.
    """
    for flag, instead in _UNSUPPORTED.items():
        if settings.get(flag):
            raise ValueError(f"nmstep.AdamW does not support {flag}=True; {instead}")
    if not settings.get("eps_root", 0.0) >= 0.0:
        raise ValueError(f"Invalid eps_root value: {settings['eps_root']}")


def as_ours_(group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Makes a group that was loaded, perhaps from torch's AdamW, one of ours."""
    # An older AdamW did not save that its decay is decoupled, and torch would take it for Adam's.
    group.setdefault("decoupled_weight_decay", defaults.get("decoupled_weight_decay", True))
    group.setdefault("eps_root", defaults.get("eps_root", 0.0))
    # How another AdamW stepped, which says nothing of how this one does.
    group |= {"capturable": False, "differentiable": False, "fused": None}


def hyperparameters(optimizer: Optimizer) -> dict[str, str]:
    """Returns every number and flag in the groups of any torch optimizer, in words, by name.

    Example:
        >>> weights = [torch.zeros(2, requires_grad=True)]
        >>> hyperparameters(torch.optim.SGD(weights, lr=0.1))["lr of group 0"]
        '0.1'
    """
    groups = enumerate(optimizer.param_groups)
    return {"the number of parameter groups": str(len(optimizer.param_groups))} | {
        f"{name} of group {number}": f"{len(value)} of them" if name == "params" else _in_words(value)
        for number, group in groups
        for name, value in group.items()
        if name == "params" or (name != "param_names" and _is_plain(value))
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str)) or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _in_words(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_in_words, value))})"
    return repr(value.item() if _is_number(value) else value)


def refuse_capture() -> None:
    """Checks that no CUDA graph is being captured: its replays would repeat one step's numbers and call no hook.

    Raises:
        RuntimeError: one is.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "nmstep's optimizer steps cannot be captured in a CUDA graph: each computes its numbers on the host, "
            "and may start masks; capture the forward and backward pass, and call optimizer.step() after the replay"
        )
