"""Pruned parts and masks in a loaded state dict: where they stand, whether they are all there, and back to work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nmstep.optim.adamw import MASK, PRUNED
from nmstep.optim.sparse_step import SparseStep
from nmstep.shards import placed_like

__all__ = ["check_keys", "check_values", "load_", "positions"]

_OR_DISTRIBUTED = (
    ". Into a distributed checkpoint's state dict, only what has a place there is loaded: call "
    "nmstep.integrations.distributed.prepare_load before get_state_dict"
)


def positions(sparse: SparseStep) -> list[int]:
    """Returns where each sparse parameter stands among all of the optimizer's, counted through its groups."""
    sizes = [len(group["params"]) for group in sparse.optimizer.param_groups]
    return [sum(sizes[: slot.group]) + slot.index for slot in sparse.slots]


def check_keys(sparse: SparseStep, state_dict: dict[str, Any], keys: dict[str, list[str]]) -> None:
    """Raises ValueError where a loaded state lacks what the optimizer itself kept when it was saved.

    Args:
        sparse: the optimizer's sparse parameters.
        state_dict: the optimizer's.
        keys: the optimizer's own state keys of each sparse parameter, by name.
    """
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    for slot, position in zip(sparse.slots, positions(sparse), strict=True):
        found = state_dict["state"].get(indices[position], {}) if position < len(indices) else {}
        missing = set(keys.get(slot.entry.name, [])) - set(found)
        if missing:
            raise ValueError(
                f"the loaded optimizer state of {slot.entry.name!r} lacks {', '.join(sorted(missing))}, "
                f"which it had when it was saved; the file is incomplete{_OR_DISTRIBUTED}"
            )


def check_values(sparse: SparseStep, values: list[dict[str, Tensor]], *, once: bool) -> None:
    """Raises ValueError unless ``values`` holds what each sparse parameter needs.

    Args:
        sparse: the optimizer's sparse parameters.
        values: pruned part or mask for each parameter, in the optimizer's order.
        once: whether the masks were chosen once.
    """
    key = MASK if once else PRUNED
    for slot, position in zip(sparse.slots, positions(sparse), strict=True):
        value = values[position].get(key) if position < len(values) else None
        if value is None or tuple(value.shape) != slot.entry.shape:
            raise ValueError(
                f"the loaded optimizer state has no {key!r} part of shape {slot.entry.shape} for "
                f"{slot.entry.name!r}; the file is incomplete, or its parameters are in another order"
                f"{_OR_DISTRIBUTED}"
            )


@torch.no_grad()
def load_(sparse: SparseStep, values: list[dict[str, Tensor]]) -> None:
    """Puts loaded pruned parts or masks into the optimizer's state, uncast.

    The parameters may be loaded before or after this, so the next step checks that both agree.
    """
    parameters = (p for group in sparse.optimizer.param_groups for p in group["params"])
    for p, value in zip(parameters, values, strict=True):
        for key, tensor in value.items():
            dtype = torch.bool if key == MASK else p.dtype
            sparse.optimizer.state[p][key] = placed_like(tensor, p).to(p.device, dtype, copy=True)
    sparse.distrust()
