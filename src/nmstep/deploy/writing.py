"""Writing packed models: the packed model's state dict as safetensors, whole or in shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmstep.deploy.description import StoredLayer, describe, part_of
from nmstep.deploy.last_tile import cut
from nmstep.deploy.layer import PackedLayer
from nmstep.deploy.packing import packed_layers
from nmstep.files import replacing, write_atomically
from nmstep.packages import require
from nmstep.sparsity_plan import unwrap

__all__ = ["check_path", "save_packed", "without_aliases", "write_tensors"]


@torch.no_grad()
def save_packed(model: nn.Module, path: str | os.PathLike[str], *, shard_bytes: int | None = None) -> None:
    """Writes a packed model: its packed layers, and everything dense beside them.

    Buffers that a state dict leaves out are written too, for models that are made on the meta device.

    A file that was there is replaced once the new one is whole. A tensor of several names is written once.

    Args:
        model: as :func:`nmstep.pack` returns it.
        path: ends in ``.safetensors``.
        shard_bytes: begin another file where one would become larger; each then has a number before its ending, and
            ``path`` with ``.index.json`` after it names them all.

    Raises:
        OSError: as :func:`nmstep.files.replacing`.
        ValueError: no layer is packed, the path has another ending, or a state is no tensor.
        ImportError: safetensors is not installed.
    """
    layers = packed_layers(model)
    if not layers:
        raise ValueError(
            f"this {type(model).__name__} has no packed layer: save_packed(nmstep.pack(model), path)"
        )
    tensors, aliases = without_aliases(_once(unwrap(model)))
    described = {
        name: StoredLayer(layer.pattern, layer.shape, layer.dim, layer.error, layer.dtype)
        for name, layer in layers.items()
    }
    rows = {
        part_of(name, part): layer.tiling.rows for name, layer in described.items() for part in layer.sizes
    }
    tensors = {name: cut(t, rows[name]) if name in rows else t for name, t in tensors.items()}
    write_tensors(tensors, Path(path), describe(described, aliases), shard_bytes=shard_bytes)


def _once(model: nn.Module) -> dict[str, Any]:
    """Returns the state of a model; a packed layer of several names has the same tensors under all of them."""
    state, first = dict(model.state_dict()), dict[int, str]()
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, PackedLayer):
            own_buffers = {part_of(name, key): t for key, t in module._buffers.items() if t is not None}
            state |= {key: t for key, t in own_buffers.items() if key not in state}
        own = first.setdefault(id(module), name)
        if isinstance(module, PackedLayer) and own != name:
            keys = [key for key in state if key.startswith(f"{name}.")]
            state |= {key: state[own + key.removeprefix(name)] for key in keys}
    return state


def check_path(path: Path) -> None:
    """Raises ValueError unless a path has the ending of what is written there."""
    if path.suffix != ".safetensors":
        raise ValueError(f"a packed model is written to a .safetensors file, not to {str(path)!r}")


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str],
    *,
    shard_bytes: int | None = None,
    check: Callable[[Path], None] | None = None,
) -> int:
    """Writes tensors with metadata and returns how many bytes the files have; as :func:`save_packed` otherwise.

    Args:
        tensors: by name.
        path: ends in ``.safetensors``.
        metadata: of each file.
        shard_bytes: as :func:`save_packed` takes it.
        check: looks at each file before it takes the place of what was there, which stays if this raises.
    """
    save = require("safetensors.torch", "packed files").save_file
    check_path(path)
    if shard_bytes is not None and not (type(shard_bytes) is int and shard_bytes > 0):
        raise ValueError(f"shard_bytes={shard_bytes!r}: expected a positive number of bytes")
    index = path.with_name(f"{path.name}.index.json")
    shards = _shards(tensors, shard_bytes)
    files = [path]
    if shard_bytes is not None:
        count = len(shards)
        files = [path.with_stem(f"{path.stem}-{i:05d}-of-{count:05d}") for i in range(1, count + 1)]
    for file, shard in zip(files, shards, strict=True):
        with replacing(file) as temporary:
            save(shard, temporary, metadata=metadata)
            if check is not None:
                check(temporary)
    if shard_bytes is not None:
        places = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
        text = json.dumps({"metadata": {}, "weight_map": places}, indent=1) + "\n"
        write_atomically(index, text.encode())
    # A whole file and an index beside it would be two models under one name.
    (index if shard_bytes is None else path).unlink(missing_ok=True)
    return sum(file.stat().st_size for file in files)


def without_aliases(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns each tensor of a state dict under its first name, and the first name for each of its others.

    Raises:
        ValueError: a state is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"cannot save {name!r}: it is a {type(tensor).__name__}, and safetensors hold tensors only"
            )
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor.contiguous()
    return tensors, aliases


def _shards(tensors: Mapping[str, Tensor], limit: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if limit is not None and shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
