"""Reading packed models, without a dense weight of a packed layer ever being in memory.

Nothing stored is executed: the model that the weights go into is the caller's own. All that a file says is checked
against that model and against the shapes that follow from it, before a kernel sees it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nmstep.deploy.description import StoredLayer, described
from nmstep.deploy.layers import PackedLinear, is_packable
from nmstep.deploy.packing import replaced
from nmstep.names import nearest
from nmstep.sparsity_plan import unwrap
from nmstep.tiles import misplaced
from nmstep.verify.files import open_path
from nmstep.verify.stored import Stored

__all__ = ["load_packed"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def load_packed(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Returns ``model`` with the packed layers and the other weights of a file.

    Dense weights of the packed layers are never in memory: make the model under ``torch.device("meta")``, and
    it has none. Tensors are mapped from the file; dense ones are read when they are first used.

    Args:
        path: what :func:`save_packed` wrote, a file or the index of several.
        model: of the same layers as the model that was packed, on any device; is not changed.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: the file is damaged, is no packed model, or is one of another model.
        ImportError: safetensors is not installed.
    """
    stored = open_path(Path(path))
    layers, aliases = described(stored)
    model = unwrap(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        _check_module(stored, name, layer, modules)
        tensors |= _read_layer(stored, name, layer)
    tensors |= {name: tensor.read() for name, tensor in stored.tensors.items() if name not in tensors}
    tensors |= {alias: _lookup(stored, tensors, name) for alias, name in aliases.items()}

    def make(name: str, module: nn.Module) -> nn.Module:
        layer, parts = layers[name], (tensors[f"{name}.values"], tensors[f"{name}.indices"])
        sizes = (layer.in_features, layer.out_features, layer.pattern)
        bias = getattr(module, "bias", None)
        return PackedLinear(*sizes, *parts, bias, dense_type=type(module)).train(module.training)

    packed = replaced(model, layers, make)
    _load(stored, packed, tensors)
    return packed


def _check_module(stored: Stored, name: str, layer: StoredLayer, modules: Mapping[str, nn.Module]) -> None:
    module = modules.get(name)
    if module is None or not is_packable(module):
        what = "no such layer" if module is None else f"a {type(module).__name__} there, which is not packed"
        raise ValueError(
            f"{stored.label} has a packed layer {name!r}, and the model has {what}{nearest(name, modules)}"
        )
    expected = [layer.out_features, layer.in_features]
    found = list(module.get_parameter("weight").shape)
    if (found if isinstance(module, nn.Linear) else found[::-1]) != expected:
        raise ValueError(
            f"{stored.label} packs {name!r} with {layer.in_features} inputs and {layer.out_features} outputs, "
            f"but the model's weight there has shape {tuple(found)}"
        )


def _read_layer(stored: Stored, name: str, layer: StoredLayer) -> dict[str, Tensor]:
    """Returns values and indices of a layer by name, checked so that no kernel can read beside an input."""
    shapes = {"values": layer.tiling.values_shape, "indices": layer.tiling.indices_shape}
    read = {}
    for part, shape in shapes.items():
        tensor = stored.tensors.get(f"{name}.{part}")
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has shape {tensor.shape}"
            raise ValueError(
                f"{stored.label}: {name + '.' + part!r} {found}, expected shape {shape} for {layer.pattern}"
            )
        read[part] = tensor.read()
    dtypes = read["values"].dtype, read["indices"].dtype
    if dtypes[0] not in _DTYPES or dtypes[1] != torch.int32:
        raise ValueError(f"{stored.label}: values and indices of {name!r} are {dtypes[0]} and {dtypes[1]}")
    wrong = misplaced(read["indices"], layer.tiling)
    if wrong is not None:
        raise ValueError(
            f"{stored.label} is damaged: in {name!r}, row {wrong[0]}, group {wrong[1]}, the places of the kept "
            f"weights are not {layer.pattern.n} ascending ones below {layer.pattern.m}"
        )
    return {f"{name}.{part}": tensor for part, tensor in read.items()}


def _lookup(stored: Stored, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{stored.label} names {name!r} as a tensor of several names, and does not hold it")
    return tensors[name]


def _load(stored: Stored, packed: nn.Module, tensors: dict[str, Tensor]) -> None:
    expected = set(packed.state_dict())
    for names, what in (
        (expected - set(tensors), "lacks tensors of the model"),
        (set(tensors) - expected, "holds tensors that the model does not have"),
    ):
        if names:
            raise ValueError(f"{stored.label} {what}: {', '.join(map(repr, sorted(names)[:5]))}")
    try:
        packed.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{stored.label} does not fit the model: {error}") from error
    left = [name for name, t in (*packed.named_parameters(), *packed.named_buffers()) if t.is_meta]
    if left:
        raise ValueError(
            f"the model on the meta device computes {', '.join(map(repr, left[:5]))} when it is made, and the file "
            f"does not hold it: make the model on the CPU"
        )
