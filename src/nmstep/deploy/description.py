"""What a packed file says of itself: which layers are packed, and how."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmstep.deploy.last_tile import cut_shape, filled
from nmstep.deploy.layer import Parts
from nmstep.patterns import NMPattern
from nmstep.tiles import LANES, Tiling, has_rows
from nmstep.verify.stored import PACKED, Stored

__all__ = ["StoredLayer", "describe", "described", "is_packed", "part_of", "weight_of"]

_VERSION = 2  # 1 had the last tile whole
_DTYPES = {
    str(t).removeprefix("torch."): t for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


def part_of(name: str, part: str) -> str:
    """Returns the name of a layer's tensor; a model that is one layer has the name ``""``."""
    return f"{name}.{part}" if name else part


@dataclass(frozen=True)
class StoredLayer:
    """What a file says of a packed layer.

    Args:
        pattern: N kept of M.
        shape: of the dense weight.
        dim: its dimension that groups run along.
        error: of int8 values: what rounding changed, as :class:`Parts` has it; None for others.
        dtype: of the dense layer; values may be narrower. None in files that do not say: the model's.
    """

    pattern: NMPattern
    shape: tuple[int, ...]
    dim: int
    error: float | None = None
    dtype: torch.dtype | None = None

    @property
    def tiling(self) -> Tiling:
        """How the layer's weight is stored."""
        return Tiling.of(self.shape, self.dim, self.pattern)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoredLayer:
        """Returns what :meth:`to_dict` described.

        Raises:
            ValueError: the shape is none that can be packed along that dimension, or the pattern is none.
            KeyError: one of them is missing.
        """
        shape, dim, pattern = tuple(values["shape"]), values["dim"], NMPattern.parse(values["pattern"])
        if not all(type(size) is int and size > 0 for size in shape) or type(dim) is not int:
            raise ValueError(f"shape {shape} and dimension {dim!r} are no positive sizes and a dimension")
        if not has_rows(shape, dim, pattern):
            raise ValueError(f"a weight of shape {shape} has no {pattern} rows along dimension {dim} to pack")
        error = values.get("int8_error")
        if error is not None and (not isinstance(error, float) or not 0 <= error < math.inf):
            raise ValueError(f"int8_error={error!r} is no error of rounding")
        dtype = values.get("dtype")
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
        return cls(pattern, shape, dim, error, None if dtype is None else _DTYPES[dtype])

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        values = {"pattern": str(self.pattern), "shape": list(self.shape), "dim": self.dim}
        if self.error is not None:
            values["int8_error"] = self.error
        if self.dtype is not None:
            values["dtype"] = str(self.dtype).removeprefix("torch.")
        return values

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the layer's tensors in the file, in the order of :class:`Parts`."""
        tiling = self.tiling
        scales = {} if self.error is None else {"scales": (tiling.tiles, LANES)}
        whole = {"values": tiling.values_shape, "indices": tiling.indices_shape, **scales}
        return {part: cut_shape(shape, tiling.rows) for part, shape in whole.items()}

    def whole(self, read: Mapping[str, Tensor]) -> Parts:
        """Returns the packed weight of which a file holds these tensors, in the shapes of :attr:`sizes`."""
        parts = {part: filled(tensor, part, self.tiling) for part, tensor in read.items()}
        return Parts(**parts, error=self.error)


def weight_of(
    name: str, layer: StoredLayer, aliases: Mapping[str, str]
) -> tuple[StoredLayer, tuple[str, ...]]:
    """Returns the same for layers that share their weight: how it is stored, and the names of its tensors.

    Args:
        name: of the layer.
        layer: what the file says of it.
        aliases: as :func:`described` returns them.
    """
    names = (part_of(name, part) for part in layer.sizes)
    return layer, tuple(aliases.get(full, full) for full in names)


def is_packed(stored: Stored) -> bool:
    """Whether a file says of itself that it is a packed model."""
    return PACKED in stored.metadata


def describe(layers: Mapping[str, StoredLayer], aliases: Mapping[str, str]) -> dict[str, str]:
    """Returns a file's metadata: one key, since safetensors does not keep the order of several.

    Args:
        layers: the packed layers, by name.
        aliases: the first name of a tensor for each of its others, which are not in the file.
    """
    named = {name: layer.to_dict() for name, layer in layers.items()}
    return {PACKED: json.dumps({"version": _VERSION, "layers": named, "aliases": dict(aliases)})}


def _check_shared(layers: Mapping[str, StoredLayer], aliases: Mapping[str, str]) -> None:
    """Raises ValueError if layers share some tensors of a weight and are not the same weight."""
    owners: dict[str, object] = {}
    for name, layer in layers.items():
        weight = weight_of(name, layer, aliases)
        for tensor in weight[1]:
            if owners.setdefault(tensor, weight) != weight:
                raise ValueError(
                    f"{tensor!r} is shared by layers that are stored differently, {name!r} among them"
                )


def described(stored: Stored) -> tuple[dict[str, StoredLayer], dict[str, str]]:
    """Returns the packed layers by name, and the first name of a tensor for each of its others.

    Raises:
        ValueError: the file is no packed model, or what it says of itself cannot be read.
    """
    if not is_packed(stored):
        raise ValueError(
            f"{stored.label} is no packed model: its metadata has no {PACKED!r}; nmstep.save_packed writes it"
        )
    try:
        description = json.loads(stored.metadata[PACKED])
        version, aliases = description["version"], description["aliases"]
        if type(version) is not int or version != _VERSION:
            raise ValueError(f"version {version!r} is not known, expected {_VERSION}: pack the model again")
        if not all(isinstance(name, str) for name in aliases.values()):
            raise ValueError("aliases are not names")
        for alias, name in aliases.items():
            if alias in stored.tensors:
                raise ValueError(f"{alias!r} is a tensor, and another name of {name!r} too")
            if name not in stored.tensors:
                raise ValueError(f"{name!r} is named as a tensor of several names, and is not in the file")
        layers = {name: StoredLayer.from_dict(values) for name, values in description["layers"].items()}
        _check_shared(layers, aliases)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{stored.label} describes no packed layers: {type(error).__name__}: {error}"
        ) from error
    return layers, dict(aliases)
