"""What AdamW is not asked for, and what it makes of the settings in another AdamW's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["MASK", "PRUNED", "as_ours_", "check_attached", "hyperparameters", "refuse", "refuse_pairs"]

# What a sparsifier keeps in a parameter's state between steps; see nmstep.optim.sparse_step.
PRUNED = "pruned"
MASK = "mask"

_UNSUPPORTED = {
    "differentiable": "leave it off: the step is not recorded by autograd",
}
_OF_ALL_GROUPS = {
    "capturable": "give capturable to the optimizer: a graph holds all groups or none",
    "fused": "give fused to the optimizer: its kernels take all groups or none",
}


def refuse(settings: Mapping[str, Any], *, of_a_group: bool) -> None:
    """Checks the settings of a group, or those that are of every group.

    Raises:
        ValueError: one is not supported there, or ``eps_root`` is negative.
    """
    for flag, instead in (_UNSUPPORTED | _OF_ALL_GROUPS if of_a_group else _UNSUPPORTED).items():
        if settings.get(flag):
            raise ValueError(f"nmstep.AdamW does not support {flag}=True; {instead}")
    if not settings.get("eps_root", 0.0) >= 0.0:
        raise ValueError(f"Invalid eps_root value: {settings['eps_root']}")


def refuse_pairs(*, fused: bool | None, foreach: bool | None, amsgrad: bool, capturable: bool) -> None:
    """Checks those settings that exclude each other.

    Raises:
        ValueError: two do.
    """
    if fused and foreach:
        raise ValueError("fused=True and foreach=True are two kinds of step: give one of them")
    if (fused or capturable) and amsgrad:
        flag = "fused" if fused else "capturable"
        raise ValueError(f"the kernels of {flag}=True do not know amsgrad=True: give one of them")
    if capturable and fused is False:
        raise ValueError("capturable=True needs the kernels that fused=False turns off: give one of them")


def check_attached(states: Iterable[Mapping[str, Any]]) -> None:
    """Checks that no state holds what a mask cut away, of an optimizer whose step no sparsifier encloses.

    Raises:
        RuntimeError: one does.
    """
    if any(PRUNED in state or MASK in state for state in states):
        raise RuntimeError(
            "this optimizer's state holds what an N:M mask cut away, but no sparsifier is attached, so a step "
            "would fill the zeros again: call nmstep.sparsify(model, optimizer, recipe) first"
        )


def as_ours_(group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Makes a group that was loaded, perhaps from torch's AdamW, one of ours."""
    # An older AdamW did not save that its decay is decoupled, and torch would take it for Adam's.
    group.setdefault("decoupled_weight_decay", defaults.get("decoupled_weight_decay", True))
    group.setdefault("eps_root", defaults.get("eps_root", 0.0))
    # How another AdamW stepped, which says nothing of how this one does.
    group |= {"capturable": defaults.get("capturable", False), "differentiable": False, "fused": None}


def hyperparameters(optimizer: Optimizer) -> dict[str, str]:
    """Returns every number and flag in the groups of any torch optimizer, in words, by name.

    Example:
        >>> import torch
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
