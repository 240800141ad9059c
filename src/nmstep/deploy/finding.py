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
from nmstep.verify.groups import count_groups

__all__ = ["verified_plan"]

_GROUPS = (2, 4, 8, 16, 32, 64)
_FEW = 1000  # one group in so many may be damaged, and one in any case


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
    pattern, usual = _sparsest(weight, entry.dim)
    if usual is not None and (pattern is None or usual.density < pattern.density):
        _warn_of_damage(entry, weight, pattern, usual)
    if pattern is None:
        return replace(entry, pattern=None, dim=None, reason="no pattern in its zeros")
    return replace(entry, pattern=pattern)


def _sparsest(weight: Tensor, dim: int) -> tuple[NMPattern | None, NMPattern | None]:
    """Returns the sparsest pattern that a weight has, and the one that all but a few of its groups have.

    Of equally sparse ones it is that of the smallest groups; None where there is none.
    """
    found, usual = [], []
    for m in _GROUPS:
        if weight.numel() and weight.shape[dim] % m == 0:
            view, group_dim = next(iter(group_views(weight, dim, m)))
            counts = view.count_nonzero(group_dim).flatten().bincount(minlength=m + 1)
            n = max(1, int(counts.nonzero()[-1]))
            found += [NMPattern(n, m)] if n < m else []
            usual += _usual(counts, m)
    return _best(found), _best(usual)


def _best(patterns: list[NMPattern]) -> NMPattern | None:
    return min(patterns, key=lambda pattern: (pattern.density, pattern.m), default=None)


def _usual(counts: Tensor, m: int) -> list[NMPattern]:
    """Returns the pattern that a mask gave all but a few groups, in a list, which is empty where none did.

    Masks keep N weights of nearly every group; zeros that came about otherwise are spread wider.

    Args:
        counts: how many groups have 0, 1, … M weights that are not zero.
        m: size of the groups.
    """
    groups = int(counts.sum())
    n = int(counts.argmax())
    beyond = int(counts[n + 1 :].sum())
    is_mask = 0 < n < m and 10 * int(counts[n]) >= 9 * groups
    return [NMPattern(n, m)] if is_mask and 0 < beyond <= max(1, groups // _FEW) else []


def _warn_of_damage(entry: PlanEntry, weight: Tensor, pattern: NMPattern | None, usual: NMPattern) -> None:
    assert entry.dim is not None
    count = count_groups(weight, usual, entry.dim)
    what = "no pattern" if pattern is None else f"{pattern}"
    warnings.warn(
        f"{entry.name!r} has {what} because of {count.groups - count.complying:,} of its {count.groups:,} "
        f"groups of {usual.m}: all others are {usual}; first {count.first}. Is it damaged? Ask for {usual}, "
        f"and it is refused",
        stacklevel=2,
    )
