"""The method's own state inside an optimizer's state dict.

The record is JSON, carried as the bytes of a uint8 tensor in the state of the optimizer's first
parameter that trains: torch.distributed.checkpoint loads no state of others. That form survives
``torch.load(weights_only=True)`` and the cast of state to the parameter's
dtype. (Distributed checkpoints keep nothing but per-parameter tensors and numbers, so they save it too; but
they load into tensors that are there already, and of one size, which a fresh optimizer does not have.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["RECORD", "check", "decode", "encode", "insert", "take"]

RECORD = "nmstep"


def encode(record: Mapping[str, Any]) -> Tensor:
    """Returns the record as a uint8 tensor, shape (bytes,).

    Example:
        >>> decode(encode({"step": 3}).to(torch.bfloat16))
        {'step': 3}
    """
    return torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8).clone()


def decode(tensor: Tensor) -> dict[str, Any]:
    """Returns the record that :func:`encode` wrote, whatever dtype it was cast to since.

    Raises:
        ValueError: the tensor does not hold a record.
    """
    try:
        record = json.loads(bytes(tensor.to("cpu", torch.uint8).tolist()).decode())
    except ValueError as error:
        raise ValueError(f"the optimizer state's {RECORD!r} entry is damaged: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"the optimizer state's {RECORD!r} entry is damaged: it holds no record")
    return record


def insert(state_dict: dict[str, Any], record: Mapping[str, Any], position: int) -> None:
    """Adds the record to a state dict without touching the live state it points to.

    Args:
        state_dict: the optimizer's.
        record: the record.
        position: of the parameter in whose state it goes, counted through the groups.
    """
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    place, state = indices[position], dict(state_dict["state"])
    state[place] = {**state.get(place, {}), RECORD: encode(record)}
    state_dict["state"] = state


def take(
    state_dict: dict[str, Any], keys: tuple[str, ...], positions: Iterable[int]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Moves the record and ``keys`` out of a state dict, which must be a shallow copy.

    Args:
        state_dict: the optimizer's.
        keys: the state keys to move.
        positions: of the parameters to take them from, counted through the groups; those of others are not ours.

    Returns:
        The record, or None; and the values of ``keys`` for each parameter, in the optimizer's order.
    """
    record: dict[str, Any] | None = None
    taken: list[dict[str, Any]] = []
    state = dict(state_dict["state"])
    ours = set(positions)
    for position, index in enumerate(
        index for group in state_dict["param_groups"] for index in group["params"]
    ):
        entry = dict(state.get(index, {}))
        if RECORD in entry:
            record = decode(entry.pop(RECORD))
        taken.append({key: entry.pop(key) for key in keys if key in entry and position in ours})
        state[index] = entry
    # An entry emptied here must not look initialised, nor an untouched one appear.
    state_dict["state"] = {index: entry for index, entry in state.items() if entry}
    return record, taken


def check(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises ValueError unless the saved record is of this model, plan and recipe.

    Args:
        saved: the loaded record.
        own: the record of the sparsifier that is to continue it.
    """
    if saved.get("version") != own["version"]:
        raise ValueError(
            f"the loaded state has record version {saved.get('version')!r}, expected {own['version']}"
        )
    differences = [
        f"{key} {saved['recipe'].get(key)!r} there, {mine!r} here"
        for key, mine in own["recipe"].items()
        if saved["recipe"].get(key) != mine
    ]
    for name in sorted({*saved["plan"], *own["plan"]}):
        theirs, mine = saved["plan"].get(name), own["plan"].get(name)
        if theirs != mine:
            differences.append(f"{name!r} {_brief(theirs)} there, {_brief(mine)} here")
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise ValueError(
            f"the loaded optimizer state belongs to another model, plan or recipe: {'; '.join(differences[:4])}"
            f"{more}. Nothing was loaded; sparsify with the recipe that the state was saved with"
        )


def _brief(planned: dict[str, Any] | None) -> str:
    return "dense" if planned is None else f"{planned['pattern']} of shape {tuple(planned['shape'])}"
