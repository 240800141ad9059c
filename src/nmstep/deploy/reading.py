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

from nmstep.deploy.description import StoredLayer, described, part_of, weight_of
from nmstep.deploy.layer import PackedLayer, Parts
from nmstep.deploy.layers import packed_type
from nmstep.deploy.packing import replaced, without_save
from nmstep.layout import reduction_dim
from nmstep.names import nearest
from nmstep.sparsity_plan import unwrap
from nmstep.tiles import from_rows, misplaced
from nmstep.verify.files import open_path
from nmstep.verify.stored import Stored

__all__ = ["load_packed", "read_layer"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@torch.no_grad()
def load_packed(path: str | os.PathLike[str], model: nn.Module, *, fallback: bool = True) -> nn.Module:
    """Returns ``model`` with the packed layers and the other weights of a file.

    Dense weights of layers that run packed are never in memory: make the model under ``torch.device("meta")``, and
    it has none. Tensors are mapped from the file; dense ones are read when they are first used. While the model is
    there, replace the file by another, as :func:`save_packed` does, rather than write into it.

    Args:
        path: what :func:`save_packed` wrote, a file or the index of several.
        model: of the same layers as the model that was packed, on any device; is not changed.
        fallback: as in :func:`pack`.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: the file is damaged, is no packed model, or is one of another model.
        ImportError: safetensors is not installed.
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"load_packed takes a module for the weights to go into, got a {type(model).__name__}"
        )
    stored = open_path(Path(path))
    layers, aliases = described(stored)
    model = unwrap(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, type[PackedLayer]] = {}
    read: dict[str, Parts] = {}
    once: dict[object, Parts] = {}  # layers that share a weight share its tensors
    for name, layer in layers.items():
        module = _module_for(stored, name, layer, modules)
        kind, weight = packed_type(module, layer.pattern), weight_of(name, layer, aliases)
        if weight not in once:
            once[weight] = read_layer(stored, name, layer, aliases)
        parts = once[weight]
        if kind is not None:
            kinds[name], read[name] = kind, parts
            tensors |= {part_of(name, part): getattr(parts, part) for part in layer.sizes}
        else:  # the model reads this weight itself
            tensors[part_of(name, "weight")] = from_rows(parts.rows(layer.tiling), layer.shape, layer.dim)
    packed_names = {part_of(name, part) for name, layer in layers.items() for part in layer.sizes}
    tensors |= {name: tensor.read() for name, tensor in stored.tensors.items() if name not in packed_names}
    tensors |= {alias: tensors[name] for alias, name in aliases.items() if alias not in packed_names}
    owners: dict[int, set[int]] = {}  # the modules that have these values
    for name, parts in read.items():
        owners.setdefault(id(parts.values), set()).add(id(modules[name]))

    def make(name: str, module: nn.Module) -> nn.Module:
        layer, parts = layers[name], read[name]
        own = fallback and len(owners[id(parts.values)]) == 1  # as in packing
        return kinds[name](module, layer.pattern, parts, dtype=layer.dtype, fallback=own)

    packed = without_save(replaced(model, kinds, make))
    _load(stored, packed, tensors)
    return packed


def _module_for(stored: Stored, name: str, layer: StoredLayer, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Returns the model's module for a packed layer, whose weight must be of its shape."""
    module = modules.get(name)
    weight = None if module is None else module._parameters.get("weight")
    if module is None or weight is None:
        what = (
            "no such layer"
            if module is None
            else f"a {type(module).__name__} without a weight of its own there"
        )
        raise ValueError(
            f"{stored.label} has a packed layer {name!r}, and the model has {what}{nearest(name, modules)}"
        )
    if tuple(weight.shape) != layer.shape or reduction_dim(module, "weight") != layer.dim:
        raise ValueError(
            f"{stored.label} packs {name!r} with a weight of shape {layer.shape} along dimension {layer.dim}, but "
            f"the model has a {type(module).__name__} there with a weight of shape {tuple(weight.shape)}"
        )
    return module


def read_layer(stored: Stored, name: str, layer: StoredLayer, aliases: Mapping[str, str]) -> Parts:
    """Returns the tensors of a layer, checked so that no kernel can read beside an input."""
    read = {}
    for part, shape in layer.sizes.items():
        full = part_of(name, part)
        tensor = stored.tensors.get(aliases.get(full, full))
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has shape {tensor.shape}"
            raise ValueError(
                f"{stored.label}: {full!r} {found}, expected shape {shape} for {layer.pattern} of {layer.shape}"
            )
        read[part] = tensor.read()
    dtypes = _DTYPES if layer.error is None else (torch.int8,)
    is_scaled = "scales" not in read or read["scales"].dtype == torch.float32
    if read["values"].dtype not in dtypes or read["indices"].dtype != torch.int32 or not is_scaled:
        found = ", ".join(f"{part} {tensor.dtype}" for part, tensor in read.items())
        raise ValueError(f"{stored.label}: the tensors of {name!r} are {found}")
    if "scales" in read and not bool(((read["scales"] >= 0) & read["scales"].isfinite()).all()):
        raise ValueError(
            f"{stored.label} is damaged: a scale of {name!r} is negative, infinite or NaN, expected a step"
        )
    parts = layer.whole(read)
    wrong = misplaced(parts.indices, layer.tiling)
    if wrong is not None:
        raise ValueError(
            f"{stored.label} is damaged: in {name!r}, row {wrong[0]}, group {wrong[1]}, the places of the kept "
            f"weights are not {layer.pattern.n} ascending ones below {layer.pattern.m}"
        )
    return parts


def _load(stored: Stored, packed: nn.Module, tensors: dict[str, Tensor]) -> None:
    state = packed.state_dict()
    expected = set(state)
    # Buffers that a state dict leaves out: only a model that was made without memory needs them.
    computed = {
        part_of(owner, key): buffer
        for owner, module in packed.named_modules(remove_duplicate=False)
        if not isinstance(module, PackedLayer)
        for key, buffer in module._buffers.items()
        if buffer is not None and part_of(owner, key) not in expected
    }
    spare = {name: tensors.pop(name) for name in computed if name in tensors}
    _fill_ties(packed, tensors)
    for names, what in (
        (expected - set(tensors), "lacks tensors of the model"),
        (set(tensors) - expected, "holds tensors that the model does not have"),
    ):
        if names:
            raise ValueError(f"{stored.label} {what}: {', '.join(map(repr, sorted(names)[:5]))}")
    # A number of another kind fails in the middle of a forward pass, or changes it.
    for name, own in state.items():
        if _kind(own) != _kind(tensors[name]):
            raise ValueError(
                f"{stored.label} does not fit the model: {name!r} is {tensors[name].dtype}, expected {own.dtype}"
            )
    made: dict[int, nn.Parameter] = {}  # one parameter for a tensor of several names
    for name, parameter in packed.named_parameters(remove_duplicate=False):
        tensor = tensors[name]
        if id(tensor) not in made:
            made[id(tensor)] = nn.Parameter(tensor, parameter.requires_grad and tensor.is_floating_point())
        tensors[name] = made[id(tensor)]
    try:
        packed.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{stored.label} does not fit the model: {error}") from error
    for name, tensor in spare.items():
        owner, _, key = name.rpartition(".")
        if computed[name].is_meta and computed[name].shape == tensor.shape:
            packed.get_submodule(owner)._buffers[key] = tensor
    left = [name for name, t in (*packed.named_parameters(), *packed.named_buffers()) if t.is_meta]
    if left:
        raise ValueError(
            f"the model on the meta device computes {', '.join(map(repr, left[:5]))} when it is made, and the file "
            f"does not hold it: make the model on the CPU, or its buffers, as accelerate.init_empty_weights does"
        )


def _fill_ties(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Adds what a model ties to another tensor: transformers writes it under one name, and says no other."""
    named = list(model.named_parameters(remove_duplicate=False))
    held = {id(parameter): tensors[name] for name, parameter in named if name in tensors}
    for name, parameter in named:
        if name not in tensors and id(parameter) in held:
            tensors[name] = held[id(parameter)]


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
