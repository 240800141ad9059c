"""Tensors by name, from a module, a state dict or a checkpoint, each read only when it is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nmstep.patterns import NMPattern
from nmstep.shards import is_sharded, local, placed_like
from nmstep.sparsity_plan import SparsityPlan, unwrap

__all__ = [
    "NM_SPARSITY",
    "PACKED",
    "Stored",
    "StoredTensor",
    "from_mapping",
    "from_module",
    "parse_promise",
    "plain_name",
]

#: Where checkpoints say what they are: a key of safetensors metadata, of config.json, of a pickled dict.
NM_SPARSITY = "nm_sparsity"
#: Where a packed file says what it holds.
PACKED = "nmstep_packed"
_NESTED = ("model", "state_dict", "model_state_dict", "training")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that can be read.

    Args:
        shape: known without reading it.
        is_floating: whether its dtype is a real floating one.
        read: returns it.
        storage: equal for names of one and the same tensor; None where that cannot be told.
    """

    shape: tuple[int, ...]
    is_floating: bool
    read: Callable[[], Tensor]
    storage: Hashable = None


@dataclass(frozen=True)
class Stored:
    """Tensors by name, with the plan or pattern that came with them.

    Args:
        label: what error messages and reports call it.
        tensors: by name.
        promise: the plan or pattern that was stored beside them, or None.
        metadata: what else a safetensors or ONNX file says of itself.
        layout: the weights of an ONNX graph and the dimension that each is summed over, with 1:1 for a pattern.
    """

    label: str
    tensors: dict[str, StoredTensor]
    promise: SparsityPlan | NMPattern | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    layout: SparsityPlan | None = None

    @cached_property
    def _by_plain_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            found.setdefault(plain_name(name), []).append(name)
        return found

    def find(self, names: tuple[str, ...]) -> str | None:
        """Returns the stored name of a tensor that a plan knows under any of ``names``, or None.

        Exact names win; otherwise the prefixes that DDP and ``torch.compile`` add are left out on
        both sides.

        Raises:
            ValueError: several stored tensors differ in such a prefix only.
        """
        for name in names:
            if name in self.tensors:
                return name
        plain = {plain_name(name) for name in names}
        found = [name for known in plain for name in self._by_plain_name.get(known, ())]
        if len({self.tensors[name].storage or name for name in found}) > 1:
            raise ValueError(
                f"{self.label} has several tensors for {names[0]!r}: {', '.join(map(repr, found))}"
            )
        return found[0] if found else None


def plain_name(name: str) -> str:
    """Returns a tensor's name without what DDP and ``torch.compile`` add to it.

    Example:
        >>> plain_name("module._orig_mod.fc.weight")
        'fc.weight'
    """
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def from_module(module: nn.Module) -> Stored:
    """Returns a module's parameters under all of their names."""
    named = dict(unwrap(module).named_parameters(remove_duplicate=False))
    return Stored(
        f"this {type(unwrap(module)).__name__}", {name: _in_memory(name, p) for name, p in named.items()}
    )


def from_mapping(values: Mapping[Any, Any], label: str) -> Stored:
    """Returns the tensors of a state dict, or of a checkpoint dict that holds one.

    Args:
        values: tensors by name; or a dict with a state dict under ``"model"``, ``"state_dict"``,
            ``"model_state_dict"`` or (nmstep's own checkpoints) ``"training"``, and possibly a plan under
            ``"nm_sparsity"``.
        label: what messages call it.

    Raises:
        ValueError: there are no tensors, or ``"nm_sparsity"`` cannot be read.
    """
    promise = parse_promise(values[NM_SPARSITY], label) if NM_SPARSITY in values else None
    tensors = _tensors_of(values)
    for key in _NESTED:
        if not tensors and isinstance(values.get(key), Mapping):
            inner = from_mapping(values[key], f"{label} under {key!r}")
            return replace(inner, label=label, promise=promise if promise is not None else inner.promise)
    if not tensors:
        keys = ", ".join(repr(key) for key in list(values)[:8]) or "nothing"
        raise ValueError(
            f"{label} holds no tensors by name (found {keys}): expected a state dict, or a dict with one "
            f"under {', '.join(map(repr, _NESTED))}"
        )
    return Stored(label, tensors, promise)


def _tensors_of(values: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    return {k: _in_memory(k, v) for k, v in values.items() if isinstance(k, str) and isinstance(v, Tensor)}


def parse_promise(value: Any, where: str) -> SparsityPlan | NMPattern:
    """Returns the plan or pattern that an ``nm_sparsity`` entry spells.

    Args:
        value: a plan's dict, ``{"pattern": "n:m"}``, ``"n:m"``, or the JSON text of one of these.
        where: what messages call its place.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> parse_promise('{"pattern": "2:4"}', "config.json")
        NMPattern(n=2, m=4)
    """
    try:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = json.loads(value)
        if isinstance(value, str):
            return NMPattern.parse(value)
        if "entries" in value:
            return SparsityPlan.from_dict(value)
        return NMPattern.parse(value["pattern"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"cannot read {NM_SPARSITY!r} of {where}: expected a plan (SparsityPlan.to_dict()) or "
            f"{{'pattern': 'n:m'}}, got {str(value)[:80]!r} ({type(error).__name__}: {error})"
        ) from error


def _in_memory(name: str, tensor: Tensor) -> StoredTensor:
    def read() -> Tensor:
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no values to verify; load the weights first"
            )
        if is_sharded(tensor):
            return placed_like(tensor, torch.empty(0))
        # A quantised tensor of another package is verified by the values that it stands for.
        return tensor.dequantize() if type(tensor).dequantize is not Tensor.dequantize else tensor

    strided = tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0
    storage = (
        (tensor.device, local(tensor).data_ptr(), tuple(tensor.shape), tensor.stride()) if strided else None
    )
    return StoredTensor(tuple(tensor.shape), tensor.is_floating_point(), read, storage)
