"""Merging a LoRA adapter into an N:M model, so that it stays N:M.

The merged weight ``W + BA`` is dense, since BA is. It is cut with W's own mask, or a mask is chosen anew from its
magnitudes. Nothing here imports PEFT; it takes the user's own ``PeftModel``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nmstep.deploy.finding import verified_plan
from nmstep.kernels import nm_mask
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import PlanEntry, SparsityPlan
from nmstep.verify import VerifyReport, verify

__all__ = ["Merged", "base_model", "merge_adapter"]

Masks = Literal["keep", "choose"]


@dataclass(frozen=True)
class Merged:
    """A model with its adapter merged.

    Args:
        model: plain and N:M.
        plan: which of its weights are N:M.
        report: what :func:`nmstep.verify` found.
        lost: the share of an update's norm that its mask cut away, ``‖(1 − Π) ⊙ (W + BA)‖ / ‖BA‖``, for each weight
            that the adapter changed.
    """

    model: nn.Module
    plan: SparsityPlan
    report: VerifyReport
    lost: dict[str, float]


@torch.no_grad()
def merge_adapter(
    model: nn.Module,
    pattern: str | NMPattern | None = None,
    *,
    masks: Masks = "keep",
    plan: SparsityPlan | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Merged:
    """Returns the base model of a PEFT model with its active adapters merged, N:M as the base model is.

    As with PEFT's own ``merge_and_unload``, the given model is used up.

    Args:
        model: a ``PeftModel`` whose base model is N:M.
        pattern: N kept of M, of every layer. Without it and a plan, the base's zeros show what each layer has.
        masks: ``"keep"`` cuts with W's own mask, so that zeros stay where they are; ``"choose"`` keeps the N
            largest of the merged weight in each group.
        plan: a pattern for each layer, by the names of the base model before PEFT wrapped it.
        include: globs of parameters of the base model, or modules above them; only these are N:M.
        exclude: globs of those that are dense.

    Raises:
        NotSparseError: the base model is not N:M; the message names the first group that is not. Nothing is merged.
        ValueError: ``masks`` is neither, no layer is sparse, or the merged weights are not finite.
        TypeError: ``model`` is no PEFT model.
    """
    if masks not in ("keep", "choose"):
        raise ValueError(f"masks={masks!r}: expected 'keep' or 'choose'")
    base = base_model(model)
    plan = verified_plan(base, pattern, plan=plan, include=include, exclude=exclude)
    before = {name: p.detach().clone() for name, p in plan.resolve(base).items()}
    merged = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    after, lost = plan.resolve(merged), {}
    for entry in plan.sparse:
        weight, old = after[entry.name], before[entry.name]
        change = float((weight - old).norm())
        if change == 0:
            continue
        mask = _mask(entry, old, weight, masks)
        lost[entry.name] = float(weight.masked_fill(mask, 0).norm()) / change
        weight.masked_fill_(~mask, 0)
    report = verify(merged, plan=plan)
    report.raise_if_failed()
    return Merged(merged, plan, report, lost)


def _mask(entry: PlanEntry, old: Tensor, new: Tensor, masks: Masks) -> Tensor:
    if masks == "keep":
        return old != 0
    assert entry.pattern is not None
    return nm_mask(new, entry.pattern, dim=entry.dim or 0, pad=entry.pad)


def base_model(model: nn.Module) -> nn.Module:
    """Returns the model below a PEFT model's adapters, with the names it had before; it shares the base's weights.

    Modules that PEFT trains whole (``modules_to_save``) stand there as trained.

    Raises:
        TypeError: ``model`` is no PEFT model.
    """
    if not hasattr(model, "merge_and_unload") or not hasattr(model, "get_base_model"):
        raise TypeError(f"expected a PeftModel, got a {type(model).__name__}")
    inner: Any = model.get_base_model()  # type: ignore[operator]
    memo: dict[int, Any] = {id(t): t for t in (*inner.parameters(), *inner.buffers())}
    for layer in inner.modules():  # from outside to inside; what is in a wrapper goes with it
        below = _below(layer)
        if below is not None:
            memo[id(layer)] = copy.deepcopy(below, memo)
    copied: nn.Module = copy.deepcopy(inner, memo)
    return copied


def _below(layer: Any) -> Any:
    """Returns the module that an adapter or a wrapper of PEFT stands in the place of, or None for other modules."""
    if hasattr(layer, "modules_to_save") and hasattr(layer, "original_module"):
        trained = [name for name in layer.active_adapters if name in layer.modules_to_save]
        return layer.modules_to_save[trained[0]] if trained else layer.original_module
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else None
