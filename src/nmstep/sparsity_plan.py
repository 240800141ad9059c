"""The plan as a value: every parameter of a model with its pattern, or the reason why it stays dense."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nmstep.names import nearest
from nmstep.patterns import NMPattern

__all__ = ["PlanEntry", "Rule", "SparsityPlan", "unwrap"]


@dataclass(frozen=True)
class Rule:
    """What a name rule asks for: a pattern (None for dense) and, for a bare parameter, a dimension.

    Args:
        pattern: ``"n:m"``, an ``NMPattern``, or None to leave the parameter dense.
        dim: the dimension that groups run along; None for the layer kind's own.
    """

    pattern: str | NMPattern | None
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None:
            object.__setattr__(self, "pattern", NMPattern.parse(self.pattern))


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """One parameter of the model and what the plan decided for it.

    Args:
        name: as ``model.named_parameters()`` names it first.
        shape: of the parameter.
        kind: class name of the module that owns it.
        pattern: N kept of M, or None where it stays dense.
        dim: the dimension that groups run along, or None.
        pad: whether the last group may be short.
        reason: why it is sparse with this pattern, or why it stays dense.
        aliases: other names of the same (tied) parameter.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    pattern: NMPattern | None = None
    dim: int | None = None
    pad: bool = False
    reason: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def kept(self) -> int:
        """Number of weights that the pattern keeps."""
        if self.pattern is None or self.dim is None:
            return self.numel
        groups, short = divmod(self.shape[self.dim], self.pattern.m)
        per_line = groups * self.pattern.n + min(self.pattern.n, short)
        return self.numel // self.shape[self.dim] * per_line if self.numel else 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry as JSON values."""
        return asdict(self) | {"pattern": None if self.pattern is None else str(self.pattern)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlanEntry:
        """Returns the entry that :meth:`to_dict` described.

        Raises:
            ValueError: a shape, pattern or dimension that no parameter can have.
            KeyError: a field is missing.
            TypeError: a field is unknown.
        """
        pattern, dim = values["pattern"], values["dim"]
        shape = tuple(values["shape"])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"{values['name']!r} has the shape {shape!r}")
        if (pattern is None) != (dim is None) or (dim is not None and dim not in range(len(shape))):
            raise ValueError(
                f"{values['name']!r} of shape {shape} has pattern {pattern!r} along dimension {dim!r}"
            )
        return cls(
            **{
                **values,
                "pattern": None if pattern is None else NMPattern.parse(pattern),
                "shape": shape,
                "aliases": tuple(values.get("aliases", ())),
            }
        )


@dataclass(frozen=True)
class SparsityPlan:
    """Every parameter of a model with its pattern, or the reason why it stays dense.

    Args:
        entries: one for each parameter, in the model's order.
    """

    entries: tuple[PlanEntry, ...]

    @property
    def sparse(self) -> tuple[PlanEntry, ...]:
        """The entries that have a pattern."""
        return tuple(entry for entry in self.entries if entry.pattern is not None)

    @property
    def density(self) -> float:
        """Share of all weights kept, dense parameters included."""
        total = sum(entry.numel for entry in self.entries)
        return sum(entry.kept for entry in self.entries) / total if total else 1.0

    def with_pattern(self, pattern: str | NMPattern) -> SparsityPlan:
        """Returns the plan with this one pattern on every sparse entry; :meth:`check` says whether it fits."""
        parsed = NMPattern.parse(pattern)
        return SparsityPlan(
            tuple(e if e.pattern is None else replace(e, pattern=parsed) for e in self.entries)
        )

    def check(self) -> None:
        """Raises ValueError if a pattern does not divide the dimension that its groups run along."""
        for entry in self.sparse:
            assert entry.pattern is not None
            assert entry.dim is not None
            size = entry.shape[entry.dim]
            if size % entry.pattern.m and not entry.pad:
                raise ValueError(
                    f"cannot apply {entry.pattern} to {entry.name!r} with shape {entry.shape}: dimension "
                    f"{entry.dim} has {size} elements, not a multiple of {entry.pattern.m}; make the plan anew "
                    f"with nmstep.plan(model, ...)"
                )

    def resolve(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Returns the model's parameter for each sparse entry, by name.

        Raises:
            ValueError: the model lacks a planned parameter, its shape differs, or a pattern does not fit it.
        """
        self.check()
        named = dict(unwrap(model).named_parameters())
        found: dict[str, nn.Parameter] = {}
        for entry in self.sparse:
            parameter = named.get(entry.name)
            if parameter is None:
                raise ValueError(
                    f"the plan names {entry.name!r}, which this {type(model).__name__} does not have"
                    f"{nearest(entry.name, named)}; make the plan from this model with nmstep.plan(model, ...)"
                )
            if tuple(parameter.shape) != entry.shape:
                raise ValueError(
                    f"the plan was made for {entry.name!r} with shape {entry.shape}, but the model's has shape "
                    f"{tuple(parameter.shape)}; make the plan anew with nmstep.plan(model, ...)"
                )
            found[entry.name] = parameter
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON values."""
        return {"version": 1, "entries": [entry.to_dict() for entry in self.entries]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparsityPlan:
        """Returns the plan that :meth:`to_dict` described.

        Raises:
            ValueError: ``values`` does not describe a plan.
        """
        try:
            if values["version"] != 1:
                raise ValueError(f"plan version {values['version']!r} is not known, expected 1")
            return cls(tuple(PlanEntry.from_dict(entry) for entry in values["entries"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a sparsity plan: {type(error).__name__}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparsityPlan:
        """Returns the plan that :meth:`save` wrote.

        Raises:
            ValueError: the file is not a plan; the message names it.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"cannot read a sparsity plan from {os.fspath(path)!r}: {error}") from error

    def __str__(self) -> str:
        rows = [("parameter", "shape", "layer", "pattern", "dim", "why"), *map(_row, self.entries)]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]).rstrip()
            for row in rows
        ]
        total, kept = sum(e.numel for e in self.entries), sum(e.kept for e in self.entries)
        lines.append(
            f"{len(self.sparse)} of {len(self.entries)} parameters sparse; "
            f"{kept:,} of {total:,} weights kept ({self.density:.1%})"
        )
        return "\n".join(lines)


def _row(entry: PlanEntry) -> tuple[str, ...]:
    return (
        " = ".join((entry.name, *entry.aliases)),
        "x".join(map(str, entry.shape)),
        entry.kind,
        "dense" if entry.pattern is None else str(entry.pattern),
        "" if entry.dim is None else str(entry.dim),
        entry.reason,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the module that ``torch.compile`` or DistributedDataParallel wrapped, or ``model`` itself."""
    while True:
        wraps = isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))
        inner = model.module if wraps else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
