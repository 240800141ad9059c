"""Plain Python that knows the answers, and shares no code with nmstep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["complies", "kept", "masked", "rows_of", "tensor"]


def tensor(seed: int, shape: tuple[int, ...], kind: str = "normal") -> Tensor:
    """Returns float64 numbers: normal ones, many equal ones, or the awkward ones among others."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "ties":
        return (values * 1.5).round()
    if kind == "special":
        awkward = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -1e-40, 1.0, -1.0])
        picked = awkward[torch.randint(len(awkward), shape, generator=generator)].double()
        return torch.where(torch.rand(shape, generator=generator) < 0.5, picked, values)
    return values


def rows_of(weight: Tensor, dim: int) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """Yields each line of a tensor along a dimension, as numbers, with its place in the others."""
    lines = weight.detach().to(torch.float64).movedim(dim, -1)
    for place in itertools.product(*map(range, lines.shape[:-1])):
        yield place, lines[place].tolist()


def kept(group: list[float], n: int) -> list[bool]:
    """Returns which of a group's weights are kept: the N largest, a NaN above all, the first of equals."""
    order = sorted(
        range(len(group)), key=lambda i: (-math.inf if math.isnan(group[i]) else -abs(group[i]), i)
    )
    # A NaN goes before an infinity: sorted once more, stably.
    order.sort(key=lambda i: not math.isnan(group[i]))
    return [i in order[:n] for i in range(len(group))]


def masked(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """Returns the mask of a weight, group by group; the last group may be short."""
    mask = torch.zeros(weight.shape, dtype=torch.bool).movedim(dim, -1)
    for place, line in rows_of(weight, dim):
        chosen = [keep for i in range(0, len(line), m) for keep in kept(line[i : i + m], n)]
        mask[place] = torch.tensor(chosen, dtype=torch.bool)
    return mask.movedim(-1, dim)


def complies(weight: Tensor, n: int, m: int, dim: int) -> bool:
    """Whether each group has at most N weights that are not zero."""
    return all(
        sum(value != 0 for value in line[i : i + m]) <= n
        for _, line in rows_of(weight, dim)
        for i in range(0, len(line), m)
    )
