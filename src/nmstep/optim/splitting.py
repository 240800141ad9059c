"""Masking several weights at once: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nmstep.kernels import split_
from nmstep.patterns import NMPattern
from nmstep.plan import PlanEntry

__all__ = ["PatternOf", "put_back_", "split_all_"]

PatternOf = Callable[[PlanEntry], NMPattern]


@torch.no_grad()
def split_all_(
    parameters: Iterable[tuple[PlanEntry, Tensor]], pattern_of: PatternOf
) -> list[tuple[Tensor, Tensor]]:
    """Masks every weight in place, and returns each with what was cut from it.

    Where something raises on the way, such as for memory that does not suffice, no weight is changed.

    Example:
        >>> from nmstep import plan
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -4.0, 1.0, 2.0]]))
        >>> entries = [(plan(layer, "2:4").sparse[0], layer.weight)]
        >>> [pruned.tolist() for _, pruned in split_all_(entries, lambda entry: NMPattern(2, 4))]
        [[[0.0, 0.0, 1.0, 2.0]]]
    """
    cut: list[tuple[Tensor, Tensor]] = []
    try:
        for entry, p in parameters:
            cut.append((p, split_(p, pattern_of(entry), dim=entry.dim or 0, pad=entry.pad)))
    except BaseException:
        put_back_(cut)
        raise
    return cut


@torch.no_grad()
def put_back_(cut: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gives weights what was cut from them, as :func:`split_all_` returned it; needs no memory."""
    for p, pruned in cut:
        p.add_(pruned)
