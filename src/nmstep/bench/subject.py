"""A model to measure, dense and packed, and how it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmstep.deploy import packed_layers

__all__ = ["Subject", "Use"]


@dataclass(frozen=True, kw_only=True)
class Use:
    """One use of a model: a call of one of its methods, with inputs in the model's own floating-point type.

    Args:
        positional: what the method takes first.
        named: its other arguments.
        method: name of the method; ``"__call__"`` for a forward pass.

    Example:
        >>> use = Use(positional=(torch.ones(1, 2),))
        >>> use(nn.Linear(2, 3).to(torch.bfloat16)).dtype
        torch.bfloat16
    """

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    method: str = "__call__"
    # Made once for each type: a cast takes as long as a small layer.
    _made: dict[torch.dtype, tuple[tuple[Any, ...], dict[str, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, model: nn.Module) -> object:
        """Returns what the model makes of it."""
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        if dtype not in self._made:
            self._made[dtype] = (
                tuple(_cast(value, dtype) for value in self.positional),
                {name: _cast(value, dtype) for name, value in self.named.items()},
            )
        positional, named = self._made[dtype]
        return getattr(model, self.method)(*positional, **named)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to measure.

    Args:
        name: what it is called.
        dense: in float32, on the CPU, in evaluation mode and without gradients.
        packed: of the same weights.
        use: takes a number of examples and returns one use of a model with so many.
        what: what one example is, in words.
        decoded: tokens that a use makes for each example, one by one; None for a model that makes none.
        file: packed file that the packed model was loaded from; None where there is none yet.
    """

    name: str
    dense: nn.Module
    packed: nn.Module
    use: Callable[[int], Use]
    what: str
    decoded: int | None = None
    file: Path | None = None

    def summary(self) -> str:
        """Returns what is packed, in one line."""
        layers = Counter(
            f"{layer.pattern} in {str(layer.values_dtype).removeprefix('torch.')}"
            for layer in packed_layers(self.packed).values()
        )
        packed = ", ".join(f"{count} layers {kind}" for kind, count in layers.items())
        return f"{self.name}: {packed}"


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
