"""Which weights of a finished model are N:M: as a plan or a pattern says, or as their zeros show."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from nmstep.layout import group_views
from nmstep.patterns import NMPattern
from nmstep.plan import plan as make_plan
from nmstep.sparsity_plan import PlanEntry, SparsityPlan
from nmstep.verify import verify

__all__ = ["verified_plan"]

_GROUPS = (2, 4, 8, 16, 32, 64)


def verified_plan(
    model: nn.Module,
    pattern: str | NMPattern | None = None,
    *,
    plan: SparsityPlan | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> SparsityPlan:
    """Returns a plan that a model complies with.

    It is ``plan``, or the default plan for ``pattern``; with neither, each layer gets the sparsest pattern that its
    zeros make with an M of 2, 4, … 64.

    Args:
        model: finished.
        pattern: N kept of M, of every layer.
        plan: a pattern for each layer.
        include: globs of parameters or modules above them; only these are sparse.
        exclude: globs of those that are dense.

    Raises:
        NotSparseError: a layer is not N:M; the message names its first group that is not.
        ValueError: no layer is sparse, or the arguments do not fit together.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> layer.weight = nn.Parameter(torch.tensor([[0.0, 1.0, 2.0, 0.0]]))
        >>> str(verified_plan(layer).sparse[0].pattern)
        '1:2'
    """
    if plan is not None and (include is not None or tuple(exclude)):
        raise ValueError("a plan says itself what is sparse: make it with include or exclude")
    if plan is None and pattern is None:
        return _found_plan(model, include, exclude)
    plan = plan or _default_plan(model, pattern, include, exclude)
    plan = plan if pattern is None else plan.with_pattern(pattern)
    verify(model, plan=plan).raise_if_failed()
    return plan


def _default_plan(
    model: nn.Module, pattern: str | NMPattern | None, include: Iterable[str] | None, exclude: Iterable[str]
) -> SparsityPlan:
    """Returns the default plan, without its warning that layers stay dense: they would stay so here anyway."""
    assert pattern is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stay dense")
        return make_plan(model, pattern, include=include, exclude=exclude)


def _found_plan(model: nn.Module, include: Iterable[str] | None, exclude: Iterable[str]) -> SparsityPlan:
    """Returns a plan with the pattern that each layer's zeros make."""
    candidates = _default_plan(model, "1:1", include, exclude)
    named = dict(model.named_parameters())
    found = SparsityPlan(tuple(_found(entry, named[entry.name]) for entry in candidates.entries))
    if not found.sparse:
        raise ValueError(
            f"no layer of this {type(model).__name__} is N:M for an M of {', '.join(map(str, _GROUPS))}: train it "
            f"with nmstep.sparsify first, or load the weights that were"
        )
    return found


def _found(entry: PlanEntry, weight: Tensor) -> PlanEntry:
    """Returns a parameter's entry with the pattern that its zeros make, if they make one."""
    if entry.dim is None:
        return entry
    pattern = _sparsest(weight, entry.dim)
    if pattern is None:
        return replace(entry, pattern=None, dim=None, reason="no pattern in its zeros")
    return replace(entry, pattern=pattern)


def _sparsest(weight: Tensor, dim: int) -> NMPattern | None:
    """Returns the sparsest pattern that a weight has, of those the one of the smallest groups, or None."""
    found = []
    for m in _GROUPS:
        if weight.numel() and weight.shape[dim] % m == 0:
            view, group_dim = next(iter(group_views(weight, dim, m)))
            n = max(1, int(view.count_nonzero(group_dim).max()))
            found += [NMPattern(n, m)] if n < m else []
    return min(found, key=lambda pattern: (pattern.density, pattern.m), default=None)
