"""The state of a DominoSearch: its settings, where each layer stands, and the rules that move them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from nmstep.patterns import NMPattern
from nmstep.recipes.layer_costs import erk_sparsities, importance
from nmstep.sparsity_plan import PlanEntry, SparsityPlan

__all__ = ["By", "Layer", "Search", "Settings", "group_magnitudes", "thresholds"]

By = Literal["parameters", "flops"]
_CLOSE_ENOUGH = 1e-3  # the search ends this far below its target, as published
_DOUBLINGS = 6  # of the penalty, as published


def group_magnitudes(weight: Tensor, entry: PlanEntry) -> Tensor:
    """Returns ``|w|`` with one group a row, shape ``(groups, m)``; a short group is filled up with zeros.

    Args:
        weight: of the entry's shape.
        entry: has a pattern and a dimension.
    """
    assert entry.pattern is not None
    assert entry.dim is not None
    values = weight.detach().abs().movedim(entry.dim, -1)
    short = -values.shape[-1] % entry.pattern.m
    return nn.functional.pad(values, (0, short)).reshape(-1, entry.pattern.m)


def thresholds(weight: Tensor, entry: PlanEntry) -> Tensor:
    """Returns the mean of each group's M/2 (rounded down) smallest magnitudes, shape ``(groups, 1)``.

    Example:
        >>> entry = PlanEntry(name="w", shape=(1, 4), kind="Linear", pattern=NMPattern(4, 4), dim=1)
        >>> thresholds(torch.tensor([[4.0, -1.0, 3.0, 2.0]]), entry)
        tensor([[1.5000]])
    """
    groups = group_magnitudes(weight, entry)
    smallest = groups.topk(groups.shape[-1] // 2, dim=-1, largest=False).values
    return smallest.mean(dim=-1, keepdim=True, dtype=torch.promote_types(weight.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of a search; see :func:`dominosearch`."""

    m: int
    target: float
    by: By
    lr: float
    penalty: float
    double_penalty_after: int
    double_penalty_every: int
    regularize_every: int
    check_every: int
    quorum: float
    max_steps: int

    def __post_init__(self) -> None:
        least_of = {"m": 2, "double_penalty_after": 0}
        for name in (*least_of, "double_penalty_every", "regularize_every", "check_every", "max_steps"):
            least = least_of.get(name, 1)
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"dominosearch({name}={value!r}): expected an integer >= {least}")
        for name in ("lr", "penalty"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"dominosearch({name}={getattr(self, name)!r}): expected a finite number above 0"
                )
        if not 0 < self.quorum <= 1:
            raise ValueError(
                f"dominosearch(quorum={self.quorum!r}): expected a share of groups, above 0 and up to 1"
            )
        if self.by not in ("parameters", "flops"):
            raise ValueError(f"dominosearch(by={self.by!r}): expected 'parameters' or 'flops'")
        if not _CLOSE_ENOUGH < self.target <= 1 - 1 / self.m:
            raise ValueError(
                f"dominosearch(target={self.target!r}, m={self.m}): expected a sparsity above "
                f"{_CLOSE_ENOUGH} and up to {1 - 1 / self.m:.6g}, which 1:{self.m} in every layer "
                f"has; a larger m reaches more"
            )

    def penalty_at(self, step: int) -> float:
        """Returns λ at a step, counted from 1."""
        late = step - self.double_penalty_after
        doublings = 0 if late < 0 else 1 + late // self.double_penalty_every
        return float(self.penalty * 2 ** min(doublings, _DOUBLINGS))


@dataclass
class Layer:
    """Where the search stands with one layer."""

    entry: PlanEntry
    weight: Tensor
    products: float
    threshold: Tensor | None  # one for each group; None where a rule fixes the pattern
    n: int  # falls by one at a time; the entry's pattern follows at powers of two
    factor: float = 0.0

    @property
    def pattern(self) -> NMPattern:
        """The pattern in force."""
        assert self.entry.pattern is not None
        return self.entry.pattern

    @property
    def density(self) -> float:
        """Share of weights that the pattern keeps."""
        return self.entry.kept / self.entry.numel

    def is_redundant(self, quorum: float) -> bool:
        """Whether enough groups have fewer than n weights above their threshold.

        Pruned weights may be counted with the others: they are the smallest, so where one is above the
        threshold all n kept ones are.
        """
        if self.threshold is None or self.n == 1:
            return False
        above = (group_magnitudes(self.weight, self.entry) > self.threshold).sum(dim=-1)
        return bool((above < self.n).double().mean() >= quorum)

    def decrement(self) -> bool:
        """Takes one from n and returns whether the pattern changed."""
        self.n -= 1
        if self.n & (self.n - 1):
            return False
        self.entry = replace(self.entry, pattern=NMPattern(self.n, self.pattern.m))
        return True

    def described(self) -> PlanEntry:
        """Returns the entry with the reason for its pattern."""
        if self.threshold is None:
            return self.entry
        reason = f"dominosearch: n={self.pattern.n} of {self.pattern.m}"
        if self.pattern.is_dense:
            # No mask to choose, no pruned part to carry, and no tool has to know M:M.
            return replace(self.entry, pattern=None, dim=None, pad=False, reason=f"{reason}, stays dense")
        return replace(self.entry, reason=reason)


@dataclass
class Search:
    """All layers of a search."""

    layers: list[Layer]
    base: SparsityPlan
    settings: Settings

    def __post_init__(self) -> None:
        self._check_reachable()
        self.update_factors()

    def sparsity(self, entries: Sequence[PlanEntry] | None = None) -> float:
        """Returns the overall sparsity, with the current patterns or with those of ``entries``."""
        entries = [layer.entry for layer in self.layers] if entries is None else entries
        sizes = [self._size(layer) for layer in self.layers]
        kept = sum(size * entry.kept / entry.numel for size, entry in zip(sizes, entries, strict=True))
        return 1 - kept / sum(sizes)

    def _size(self, layer: Layer) -> float:
        """What a layer counts in the overall sparsity."""
        return layer.products if self.settings.by == "flops" else float(layer.entry.numel)

    @property
    def is_done(self) -> bool:
        """Whether the target is reached."""
        return self.sparsity() >= self.settings.target - _CLOSE_ENOUGH

    def update_factors(self) -> None:
        """Finds f anew from the current patterns, for the layers that no rule fixes."""
        searched = [layer for layer in self.layers if layer.threshold is not None]
        sizes = [self._size(layer) for layer in searched]
        if not sum(sizes):
            return
        fixed = sum(self._size(layer) * layer.density for layer in self.layers if layer.threshold is None)
        budget = (1 - self.settings.target) * sum(map(self._size, self.layers)) - fixed
        goals = erk_sparsities(
            [layer.entry.shape for layer in searched],
            1 - budget / sum(sizes),
            sizes=sizes,
            floor=1 / self.settings.m,
        )
        factors = importance([x.products for x in searched], [x.density for x in searched], goals)
        for layer, factor in zip(searched, factors, strict=True):
            layer.factor = factor

    def check(self) -> None:
        """Takes one from n in each redundant layer, until the target is reached."""
        for layer in sorted(self.layers, key=lambda layer: -layer.factor):
            if layer.is_redundant(self.settings.quorum) and layer.decrement() and self.is_done:
                break
        self.update_factors()

    def plan(self) -> SparsityPlan:
        """Returns the base plan with the patterns found so far."""
        found = {layer.entry.name: layer.described() for layer in self.layers}
        return SparsityPlan(tuple(found.get(entry.name, entry) for entry in self.base.entries))

    def summary(self) -> str:
        """Returns what was reached, a line for each layer."""
        lines = [
            f"  {layer.entry.name}: n={layer.pattern.n} of {layer.pattern.m} ({1 - layer.density:.1%} sparse)"
            for layer in self.layers
        ]
        return "\n".join([f"{self.sparsity():.2%} by {self.settings.by} overall", *lines])

    def _check_reachable(self) -> None:
        """Refuses a target that rules or padding put out of reach."""
        settings = self.settings
        if settings.by == "flops" and not any(layer.products for layer in self.layers):
            raise ValueError(
                "dominosearch(by='flops'): loss_fn ran none of the planned layers of the model it was given"
            )
        sparsest = NMPattern(1, settings.m)
        best = self.sparsity(
            [x.entry if x.threshold is None else replace(x.entry, pattern=sparsest) for x in self.layers]
        )
        if best < settings.target - _CLOSE_ENOUGH:
            raise ValueError(
                f"dominosearch(target={settings.target!r}, by={settings.by!r}) is out of reach: with "
                f"1:{settings.m} in every layer that no rule fixes, {best:.6g} is reached; lower the target "
                f"or drop rules"
            )
