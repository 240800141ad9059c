"""What a packed file says of itself: which layers are packed, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nmstep.deploy.layers import PackedLinear
from nmstep.patterns import NMPattern
from nmstep.tiles import Tiling
from nmstep.verify.stored import Stored

__all__ = ["StoredLayer", "describe", "described"]

KEY, _VERSION = "nmstep_packed", 1


@dataclass(frozen=True)
class StoredLayer:
    """What a file says of a packed layer.

    Args:
        pattern: N kept of M.
        in_features: inputs.
        out_features: outputs.
    """

    pattern: NMPattern
    in_features: int
    out_features: int

    @property
    def tiling(self) -> Tiling:
        """How the layer's weight is stored."""
        return Tiling(self.out_features, self.in_features, self.pattern)

    @classmethod
    def of(cls, layer: PackedLinear) -> StoredLayer:
        """Returns the description of a layer."""
        return cls(layer.pattern, layer.in_features, layer.out_features)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoredLayer:
        """Returns what :meth:`to_dict` described.

        Raises:
            ValueError: a size or the pattern is none.
            KeyError: one of them is missing.
        """
        sizes = [values["in_features"], values["out_features"]]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"sizes {sizes} are not positive integers")
        return cls(NMPattern.parse(values["pattern"]), *sizes)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self) | {"pattern": str(self.pattern)}


def describe(layers: Mapping[str, PackedLinear], aliases: Mapping[str, str]) -> dict[str, str]:
    """Returns a file's metadata: one key, since safetensors does not keep the order of several.

    Args:
        layers: the packed layers, by name.
        aliases: the first name of a tensor for each of its others, which are not in the file.
    """
    named = {name: StoredLayer.of(layer).to_dict() for name, layer in layers.items()}
    return {KEY: json.dumps({"version": _VERSION, "layers": named, "aliases": dict(aliases)})}


def described(stored: Stored) -> tuple[dict[str, StoredLayer], dict[str, str]]:
    """Returns the packed layers by name, and the first name of a tensor for each of its others.

    Raises:
        ValueError: the file is no packed model, or what it says of itself cannot be read.
    """
    if KEY not in stored.metadata:
        raise ValueError(
            f"{stored.label} is no packed model: its metadata has no {KEY!r}; nmstep.save_packed writes it"
        )
    try:
        description = json.loads(stored.metadata[KEY])
        version, aliases = description["version"], description["aliases"]
        if version != _VERSION:
            raise ValueError(f"version {version!r} is not known, expected {_VERSION}")
        if not all(isinstance(name, str) for name in aliases.values()):
            raise ValueError("aliases are not names")
        layers = {name: StoredLayer.from_dict(values) for name, values in description["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{stored.label} describes no packed layers: {type(error).__name__}: {error}"
        ) from error
    return layers, dict(aliases)
