"""Where a model's weights went in an exported ONNX graph, and what can be promised of them there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nmstep.sparsity_plan import PlanEntry, SparsityPlan

__all__ = ["Placed", "place_weights"]


@dataclass(frozen=True)
class Placed:
    """Which weights of a plan an ONNX graph holds.

    Args:
        plan: in the graph's own names, shapes and dimensions.
        missing: names of sparse parameters that the graph holds in no form that is known.
    """

    plan: SparsityPlan
    missing: tuple[str, ...]


def place_weights(initializers: Mapping[str, Any], model: nn.Module, plan: SparsityPlan) -> Placed:
    """Finds the parameters of a plan in a graph, and names those that the exporter turned or renamed.

    A product with a matrix of shape (out, in) becomes one with its transpose, under a number for a name. It is
    found by its values and named ``"fc.weight.T"``.

    Args:
        initializers: of the graph, by name; their values are ``onnx_ir.Value`` and may be renamed.
        model: that was exported.
        plan: that it complies with.
    """
    values = dict(model.named_parameters(remove_duplicate=False))
    unnamed: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
    for name, value in initializers.items():
        if name in values or value.const_value is None or len(value.const_value.shape) < 2:
            continue
        array = value.const_value.numpy()
        if array.dtype.kind == "f":
            unnamed.setdefault(tuple(array.shape), []).append((name, torch.from_numpy(array.copy())))
    entries: list[PlanEntry] = []
    missing, renamed = [], {}
    for entry in plan.entries:
        named = next((n for n in (entry.name, *entry.aliases) if _has(initializers, n, entry.shape)), None)
        if named is not None:
            entries.append(replace(entry, name=named, aliases=()))
            continue
        if entry.dim is None:
            continue
        found = _by_values(unnamed, values[entry.name].detach(), entry)
        if found is None:
            missing.append(entry.name)
        elif found[0] not in renamed:  # equal weights are held once
            renamed[found[0]] = found[1].name
            entries.append(found[1])
    for old, new in renamed.items():
        initializers[old].name = new
    return Placed(SparsityPlan(tuple(entries)), tuple(missing))


def _has(initializers: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> bool:
    value = initializers.get(name)
    return value is not None and value.const_value is not None and tuple(value.const_value.shape) == shape


def _by_values(
    unnamed: Mapping[tuple[int, ...], list[tuple[str, Tensor]]], weight: Tensor, entry: PlanEntry
) -> tuple[str, PlanEntry] | None:
    """Returns the name of the tensor that equals a weight or its transpose, and what the plan says of it there."""
    for name, tensor in unnamed.get(entry.shape, []):
        if torch.equal(tensor, weight):
            return name, replace(entry, aliases=())
    if len(entry.shape) == 2 and entry.dim is not None:
        turned = (entry.shape[1], entry.shape[0])
        for name, tensor in unnamed.get(turned, []):
            if torch.equal(tensor, weight.T):
                reason = f"{entry.reason}; transposed"
                return name, replace(
                    entry, name=f"{entry.name}.T", shape=turned, dim=1 - entry.dim, aliases=(), reason=reason
                )
    return None
