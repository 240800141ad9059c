"""A finished N:M checkpoint or packed file as dense tensors, without its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nmstep.deploy.description import StoredLayer, described, is_packed, part_of, weight_of
from nmstep.deploy.layer import PARTS
from nmstep.deploy.reading import read_layer
from nmstep.files import read_json
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import PlanEntry, SparsityPlan
from nmstep.tiles import from_rows
from nmstep.verify import verify
from nmstep.verify.files import open_path
from nmstep.verify.stored import Stored, plain_name

__all__ = ["DenseTensors", "dense_tensors"]


@dataclass(frozen=True)
class DenseTensors:
    """What a model's file is to hold.

    Args:
        tensors: by name; two names may have one tensor.
        plan: which of them are N:M.
        aliases: the first name of a tensor for each name that ``tensors`` lacks.
        config: of the Hugging Face folder that they come from; empty for another source.
    """

    tensors: dict[str, Tensor]
    plan: SparsityPlan
    aliases: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def dense_tensors(
    source: Path, pattern: str | NMPattern | None = None, plan: SparsityPlan | None = None
) -> DenseTensors:
    """Returns the tensors of a checkpoint, with what was packed unpacked.

    Args:
        source: a file or folder as :func:`nmstep.verify` takes it, or a packed file.
        pattern: N kept of M, asked of all sparse weights instead of their own.
        plan: which weights are sparse, in place of what the source says itself.

    Raises:
        NotSparseError: a weight is not N:M; the message names its first group that is not.
        FileNotFoundError: there is no such source.
        ValueError: nothing says which weights are sparse, or the source is damaged.
    """
    stored = open_path(source)
    if is_packed(stored):
        dense = _unpacked(stored)
        plan = plan or dense.plan
        plan = plan if pattern is None else plan.with_pattern(pattern)
        verify(dense.tensors, plan=plan).raise_if_failed()
        return DenseTensors(dense.tensors, plan, dense.aliases, _hub_config(source))
    promise = plan or stored.promise
    if not isinstance(promise, SparsityPlan):
        raise ValueError(
            f"{stored.label} does not say which of its weights are sparse along which dimension: load it into its "
            f"model, and export that with nmstep.export_dense(model, folder, pattern='2:4')"
        )
    promise = promise if pattern is None else promise.with_pattern(pattern)
    verify(source, plan=promise).raise_if_failed()
    tensors = {plain_name(name): tensor.read() for name, tensor in stored.tensors.items()}
    aliases = {
        alias: name for alias, name in stored.metadata.items() if name in tensors and alias not in tensors
    }
    return DenseTensors(tensors, promise, aliases, _hub_config(source))


def _unpacked(stored: Stored) -> DenseTensors:
    """Returns what a packed file holds; its plan lacks weights that stayed dense in it, which it does not name."""
    layers, aliases = described(stored)
    parts = {part_of(name, part) for name in layers for part in PARTS}
    tensors = {name: tensor.read() for name, tensor in stored.tensors.items() if name not in parts}
    first: dict[object, str] = {}  # the name of a weight that several layers may share
    entries = []
    others = {alias: name for alias, name in aliases.items() if alias not in parts}
    for name, layer in layers.items():
        weight, stored_as = part_of(name, "weight"), weight_of(name, layer, aliases)
        if stored_as in first:
            others[weight] = first[stored_as]
            continue
        first[stored_as] = weight
        rows = read_layer(stored, name, layer, aliases).rows(layer.tiling)
        tensors[weight] = from_rows(rows, layer.shape, layer.dim)
        entries.append(_entry(weight, layer))
    return DenseTensors(tensors, SparsityPlan(tuple(entries)), others)


def _entry(name: str, layer: StoredLayer) -> PlanEntry:
    return PlanEntry(
        name=name, shape=layer.shape, kind="packed", pattern=layer.pattern, dim=layer.dim, reason="was packed"
    )


def _hub_config(source: Path) -> dict[str, Any]:
    """Returns the configuration of the Hugging Face folder that a source is or lies in, if it is one."""
    path = (source if source.is_dir() else source.parent) / "config.json"
    config = read_json(path) if path.is_file() else {}
    return config if "model_type" in config else {}
