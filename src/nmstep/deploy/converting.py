"""From an N:M checkpoint to a packed file and back, tensor by tensor and without a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nmstep.deploy.description import StoredLayer, describe, is_packed, part_of
from nmstep.deploy.last_tile import cut
from nmstep.deploy.layer import Parts
from nmstep.deploy.packing import check_dtype, packed_parts
from nmstep.deploy.writing import check_path, write_tensors
from nmstep.packages import require
from nmstep.sparsity_plan import PlanEntry, SparsityPlan
from nmstep.tiles import as_rows, has_rows
from nmstep.verify import verify
from nmstep.verify.files import open_path
from nmstep.verify.stored import Stored, plain_name

__all__ = ["PackedFile", "pack_file"]

_KINDS = ("Linear", "Conv1D", "Conv1d", "Conv2d")


@dataclass(frozen=True)
class PackedFile:
    """What was written.

    Args:
        path: of the file.
        packed: bytes of all that was written.
        dense: bytes that the checkpoint's tensors take.
        layers: what is packed, by name.
        left: names of sparse weights that stay dense in the file.
    """

    path: Path
    packed: int
    dense: int
    layers: dict[str, StoredLayer]
    left: tuple[str, ...]


@torch.no_grad()
def pack_file(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    plan: SparsityPlan | None = None,
    dtype: torch.dtype | None = None,
) -> PackedFile:
    """Writes a packed file of an N:M checkpoint, without its model.

    One tensor is read at a time. What was written is read back, unpacked and compared with the checkpoint before it
    takes the place of a file that was there. :func:`nmstep.load_packed` puts the file into a model.

    Args:
        source: a file or folder as :func:`nmstep.verify` takes it.
        path: ends in ``.safetensors``.
        plan: which weights are sparse, in place of what the source says itself, as a run folder does.
        dtype: to hold kept weights in: float32, bfloat16, float16 or int8; their own by default.

    Raises:
        NotSparseError: a weight is not N:M; the message names its first group that is not.
        FileNotFoundError: there is no such source.
        ValueError: nothing says which weights are sparse; the source is packed, or cannot be read; or the path has
            another ending.
        RuntimeError: what was written reads differently; a file that was there stays.
    """
    check_dtype(dtype)
    check_path(Path(path))
    stored = open_path(Path(source))
    if is_packed(stored):
        raise ValueError(f"{stored.label} is packed already: nmstep.export_dense(path, folder) unpacks it")
    promise = plan or stored.promise
    if not isinstance(promise, SparsityPlan):
        raise ValueError(
            f"{stored.label} does not say which of its weights are sparse along which dimension: load it into its "
            f"model, and write that with nmstep.save_packed(nmstep.pack(model, pattern), path); or give its plan"
        )
    verify(source, plan=promise).raise_if_failed()
    sparse = {plain_name(name): entry for entry in promise.sparse for name in (entry.name, *entry.aliases)}
    tensors: dict[str, Tensor] = {}
    layers: dict[str, StoredLayer] = {}
    left, dense = [], 0
    for stored_name, tensor in stored.tensors.items():
        name = plain_name(stored_name)
        value, entry = tensor.read(), sparse.get(name)
        size = value.nbytes
        if entry is not None and _is_packable(entry):
            assert entry.pattern is not None
            assert entry.dim is not None
            owner = _owner(name)
            parts = packed_parts(as_rows(value, entry.dim), entry.pattern, dtype)
            layer = StoredLayer(entry.pattern, tuple(value.shape), entry.dim, parts.error, value.dtype)
            layers[owner] = layer
            rows = layer.tiling.rows
            tensors |= {part_of(owner, part): cut(getattr(parts, part), rows) for part in layer.sizes}
        else:
            tensors[name] = value
            left += [] if entry is None else [name]
        dense += size
    if not layers:
        raise ValueError(
            f"nothing to pack in {stored.label}: it has no sparse layer of a kind that is packed"
        )
    aliases = _aliases(stored, layers)

    def check(file: Path) -> None:
        _check_written(file, stored, layers)

    written = write_tensors(tensors, Path(path), describe(layers, aliases), check=check)
    return PackedFile(Path(path), written, dense, layers, tuple(left))


def _check_written(file: Path, stored: Stored, layers: dict[str, StoredLayer]) -> None:
    """Raises RuntimeError unless a packed file holds what the checkpoint does, in the dtype of its values."""
    with require("safetensors", "packed files").safe_open(file, framework="pt") as written:
        for stored_name, tensor in stored.tensors.items():
            name, value = plain_name(stored_name), tensor.read()
            layer = layers.get(_owner(name)) if name.rpartition(".")[2] == "weight" else None
            if layer is None:
                is_same = _same_values(written.get_tensor(name), value)
            else:
                read = {part: written.get_tensor(part_of(_owner(name), part)) for part in layer.sizes}
                is_same = _holds(layer.whole(read), layer, as_rows(value, layer.dim))
            if not is_same:
                raise RuntimeError(f"{name!r} reads differently than it was packed: is the disk sound?")


def _holds(parts: Parts, layer: StoredLayer, rows: Tensor) -> bool:
    """Whether a packed weight is that of these rows, to half a step where its values are int8."""
    found = parts.rows(layer.tiling)
    if parts.scales is None:
        return _same_values(found, rows.to(found.dtype))
    half = 0.5001 * parts.scales.flatten()[: len(rows), None]
    return bool(((found - rows.float()).abs() <= half).all())


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are equal, where NaN equals NaN, and a negative zero a positive one."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _owner(name: str) -> str:
    """Returns the name of the layer that has this weight."""
    return name.rpartition(".")[0]


def _aliases(stored: Stored, layers: dict[str, StoredLayer]) -> dict[str, str]:
    """Returns the first name of a tensor for each of its others, as a run's metadata says; packs both or none."""
    found: dict[str, str] = {}
    for alias, name in stored.metadata.items():
        if name not in stored.tensors or alias in stored.tensors:
            continue
        other, owner = _owner(alias), _owner(name)
        if name.rpartition(".")[2] == "weight" and owner in layers:
            layers[other] = layers[owner]
            found |= {part_of(other, part): part_of(owner, part) for part in layers[owner].sizes}
        else:
            found[alias] = name
    return found


def _is_packable(entry: PlanEntry) -> bool:
    return (
        entry.kind in _KINDS
        and entry.name.rpartition(".")[2] == "weight"
        and entry.pattern is not None
        and has_rows(entry.shape, entry.dim or 0, entry.pattern)
    )
