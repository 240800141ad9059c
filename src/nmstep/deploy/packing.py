"""Packing the N:M layers of a model, and unpacking them."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from nmstep.deploy.finding import verified_plan
from nmstep.deploy.layer import PackedLayer, Parts
from nmstep.deploy.layers import packed_type
from nmstep.layout import reduction_dim
from nmstep.patterns import NMPattern
from nmstep.quantizing import quantized
from nmstep.sparsity_plan import SparsityPlan, unwrap
from nmstep.tiles import MOST_M, Tiling, as_rows, pack_rows, unpack_rows

__all__ = ["check_dtype", "pack", "packed_layers", "packed_parts", "replaced", "unpack", "without_save"]

_SAVE = "save_pretrained"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


@torch.no_grad()
def pack(
    model: nn.Module,
    pattern: str | NMPattern | None = None,
    *,
    plan: SparsityPlan | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    dtype: torch.dtype | None = None,
    fallback: bool = True,
) -> nn.Module:
    """Returns the model with its N:M layers packed; what stays dense is shared with ``model``, which is unchanged.

    Which layers are packed is taken from ``plan``, or from the default plan for ``pattern``; with neither, every
    layer whose zeros make it N:M for an M of 2, 4, … 64 is packed with its sparsest pattern. Packed are Linear
    layers, transformers' Conv1D, and Conv1d and Conv2d of one group; what else is sparse stays dense, with a
    warning.

    Args:
        model: any module.
        pattern: N kept of M, of every layer.
        plan: a pattern for each layer.
        include: globs of parameters or modules above them; only these are packed.
        exclude: globs of those that stay dense.
        dtype: to hold the values in: float32, bfloat16, float16, or int8 with a scale for each row of outputs;
            each layer's own by default.
        fallback: False to run every layer packed, also where torch's dense one is faster; see
            :attr:`.PackedLayer.dense_from`.

    Raises:
        NotSparseError: a layer is not N:M; the message names its first group that is not.
        ValueError: nothing is there to pack, or the arguments do not fit together.
        TypeError: ``model`` is no module.

    Example:
        >>> import nmstep
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.mul_(nmstep.nm_mask(model[0].weight, "2:4"))
        >>> nmstep.pack(model)[0]
        PackedLinear(in_features=256, out_features=256, bias=True, pattern=2:4, dtype=torch.float32...)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"pack takes a module, got a {type(model).__name__}")
    check_dtype(dtype)
    if packed_layers(model):
        raise ValueError(f"this {type(model).__name__} is packed already")
    model = unwrap(model)
    plan = verified_plan(model, pattern, plan=plan, include=include, exclude=exclude)
    patterns = _patterns(model, plan)
    parts: dict[int, Parts] = {}  # a weight of two layers is packed once
    owners = Counter(
        id(module.get_parameter("weight")) for module in {model.get_submodule(n) for n in patterns}
    )

    def make(name: str, module: nn.Module) -> nn.Module:
        kind, weight = packed_type(module, patterns[name]), module.get_parameter("weight")
        assert kind is not None
        if id(weight) not in parts:
            rows = as_rows(weight.detach(), reduction_dim(module, "weight") or 0)
            parts[id(weight)] = packed_parts(rows, patterns[name], dtype)
        own = fallback and owners[id(weight)] == 1  # held dense, a weight of several layers would be copied
        return kind(module, patterns[name], parts[id(weight)], fallback=own)

    return without_save(replaced(model, patterns, make))


@torch.no_grad()
def unpack(model: nn.Module) -> nn.Module:
    """Returns the model with its packed layers made dense again, with the weights that were packed.

    What was not packed is shared with ``model``, which is unchanged. Weights are equal bit for bit where values are
    held in the layer's own dtype; a negative zero comes back positive.

    Raises:
        ValueError: no layer is packed.
    """
    layers = packed_layers(model)
    if not layers:
        raise ValueError(f"this {type(model).__name__} has no packed layer")
    weights: dict[int, nn.Parameter | None] = {}  # of layers that share one

    def make(name: str, _: nn.Module) -> nn.Module:
        dense = layers[name].dense()
        dense._parameters["weight"] = weights.setdefault(layers[name].owner, dense._parameters["weight"])
        return dense

    dense = replaced(unwrap(model), layers, make)
    vars(dense).pop(_SAVE, None)
    return dense


def packed_parts(rows: Tensor, pattern: NMPattern, dtype: torch.dtype | None = None) -> Parts:
    """Returns a weight of shape (outputs, inputs) packed, with values in this dtype or, by default, its own.

    Raises:
        ValueError: as :func:`nmstep.tiles.pack_rows` and :func:`nmstep.quantizing.quantized`.
    """
    if dtype is torch.int8:
        values, indices = pack_rows(rows, pattern)
        whole, scales, error = quantized(values)
        # Once more: what was rounded to zero is kept as the first zeros of a group are, wherever it stood.
        steps = unpack_rows(whole, indices, Tiling(len(rows), rows.shape[1], pattern))
        return Parts(*pack_rows(steps, pattern), scales, error)
    parts = Parts(*pack_rows(rows, pattern, dtype=dtype))
    if dtype is torch.float16 and bool(parts.values.isinf().any()) and not bool(rows.isinf().any()):
        raise ValueError(
            f"float16 holds numbers up to 65504, and a weight is {float(rows.abs().max()):.3g}: take bfloat16"
        )
    return parts


def without_save(model: nn.Module) -> nn.Module:
    """Returns a packed model with its method of transformers that would write a folder which loads as another."""
    if hasattr(model, _SAVE):
        vars(model)[_SAVE] = _refuse_to_save
    return model


def _refuse_to_save(*_: object, **__: object) -> None:
    raise RuntimeError(
        "from_pretrained cannot read packed layers: write this model with nmstep.save_packed(model, path), or "
        "nmstep.export_dense(model, folder) for from_pretrained"
    )


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises ValueError unless values can be held in ``dtype``; None stands for the weights' own."""
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"values are packed in {', '.join(map(str, _DTYPES))}, not in {dtype}")


def packed_layers(model: nn.Module) -> dict[str, PackedLayer]:
    """Returns the packed layers of a model, by name."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, PackedLayer)}


def replaced(
    model: nn.Module, names: Iterable[str], make: Callable[[str, nn.Module], nn.Module]
) -> nn.Module:
    """Returns a copy of a model that shares its tensors and has other modules in some places.

    Args:
        model: stays as it is.
        names: of the modules that are to be replaced; a module of several names is replaced once.
        make: takes a name and the module of that name, and returns what stands there in the copy.
    """
    # Tensors of their own for the copy, on the same memory: casting one model leaves the other as it is.
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    memo |= {id(buffer): buffer.detach() for buffer in model.buffers()}
    for name in names:
        module = model.get_submodule(name)
        if id(module) not in memo:
            memo[id(module)] = made = make(name, module)
            bias = module._parameters.get("bias")
            if bias is not None:  # one parameter still, where layers share it
                made._parameters["bias"] = memo[id(bias)]  # type: ignore[assignment]
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"this {type(model).__name__} holds something that cannot be copied: {error}"
        ) from error


def _patterns(model: nn.Module, plan: SparsityPlan) -> dict[str, NMPattern]:
    """Returns the pattern of each module that is to be packed, and warns of sparse parameters that stay dense."""
    modules = dict(model.named_modules(remove_duplicate=False))
    patterns: dict[str, NMPattern] = {}
    dense: list[str] = []
    for entry in plan.sparse:
        assert entry.pattern is not None
        owners = [name.rpartition(".") for name in (entry.name, *entry.aliases)]
        if entry.pattern.is_dense:
            continue
        if all(part == "weight" and packed_type(modules[owner], entry.pattern) for owner, _, part in owners):
            patterns |= {owner: entry.pattern for owner, _, _ in owners}
        else:
            dense.append(entry.name)
    if not patterns:
        raise ValueError(
            f"nothing to pack in this {type(model).__name__}: no layer of a kind that is packed is sparse"
        )
    if dense:
        more = f" and {len(dense) - 5} more" if len(dense) > 5 else ""
        warnings.warn(
            f"{len(dense)} sparse parameter(s) stay dense: {', '.join(map(repr, dense[:5]))}{more}. Packed are "
            f"Linear, transformers' Conv1D, and Conv1d and Conv2d of one group, without hooks, M up to {MOST_M}",
            stacklevel=3,
        )
    return patterns
