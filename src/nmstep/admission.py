"""Whether a recipe can work with an optimizer: everything that can be refused before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from nmstep.kernels import status
from nmstep.optim.adamw import AdamW
from nmstep.optim.settings import hyperparameters
from nmstep.optim.variance import has_variance
from nmstep.recipes.recipe import Recipe
from nmstep.sparsity_plan import SparsityPlan
from nmstep.trace import TraceOptions

__all__ = ["ATTACHED", "check_arguments", "what_must_agree", "wrapped_by"]

ATTACHED = "_nmstep_sparsifier"  # the attribute by which an optimizer knows its sparsifier
_HOOKS = "_optimizer_step_pre_hooks"


def wrapped_by(optimizer: Any) -> Any:
    """Returns the optimizer that a wrapper such as Accelerate's or Lightning's holds, or None where it is none.

    An optimizer that has hooks of its own beside an inner one, such as a Lookahead, is no wrapper.
    """
    hooks = getattr(optimizer, _HOOKS, None)
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, name, None)
        if isinstance(inner, Optimizer) and inner is not optimizer:
            own = (
                isinstance(optimizer, Optimizer) and hooks is not None and hooks is not getattr(inner, _HOOKS)
            )
            return None if own else inner
    return None


def check_arguments(model: nn.Module, optimizer: Optimizer, recipe: Recipe, on_nonfinite: str) -> None:
    """Checks the arguments of :func:`nmstep.sparsify` against each other.

    Raises:
        TypeError: an argument is of another kind altogether.
        ValueError: the optimizer is taken already, or the recipe asks for what it does not have.
    """
    kind = type(optimizer).__name__
    if on_nonfinite not in ("raise", "skip", "ignore"):
        raise ValueError(f"on_nonfinite={on_nonfinite!r}: expected 'raise', 'skip' or 'ignore'")
    inner = wrapped_by(optimizer)
    if inner is not None:
        # Such a wrapper runs none of the hooks that are registered with it, so the recipe would do nothing.
        raise TypeError(
            f"sparsify takes a torch.optim.Optimizer itself, got {kind} around {type(inner).__name__}; call "
            f"sparsify before the trainer wraps the optimizer, or pass the wrapper's inner optimizer"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"sparsify takes a torch.optim.Optimizer, got {kind}; pass a wrapper's inner optimizer"
        )
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"sparsify takes a recipe such as nmstep.STEP('2:4', total_steps=...), got {recipe!r}"
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel cuts flattened parameters, of which no group of M can be told: use its "
            "successor, torch.distributed.fsdp.fully_shard"
        )
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        raise ValueError(
            "ZeroRedundancyOptimizer saves the state of an optimizer inside it, without what masks cut away, so no "
            "run could be resumed: shard the state with torch.distributed.fsdp.fully_shard"
        )
    if hasattr(optimizer, ATTACHED):
        raise ValueError(
            f"this {kind} has a sparsifier already ({getattr(optimizer, ATTACHED).recipe.name}); call its "
            f"finalize() first, or make a new optimizer"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS evaluates its closure several times a step, between which no mask can be chosen"
        )
    if recipe.freeze != "none" and not isinstance(optimizer, AdamW):
        raise ValueError(
            f"{recipe.name} freezes the variance, which {kind} cannot: use nmstep.AdamW (with "
            f"decoupled_weight_decay=False for Adam), or STEP(..., freeze_variance=False)"
        )
    if recipe.freeze != "none" and any(group["amsgrad"] for group in optimizer.param_groups):
        raise ValueError(
            f"{recipe.name} freezes the variance, which amsgrad=True does not allow; use amsgrad=False"
        )
    if recipe.switch is not None and recipe.switch.needs_variance and not has_variance(optimizer):
        raise ValueError(
            f"{type(recipe.switch).__name__} reads Adam's second moment, which {kind} does not keep; say when "
            f"masks start with switch=SwitchAt(step), or use nmstep.AdamW"
        )


def what_must_agree(
    plan: SparsityPlan, optimizer: Optimizer, recipe: Recipe, on_nonfinite: str, options: TraceOptions
) -> dict[str, str]:
    """Returns what ranks must have in common to take the same decisions, and to talk at the same steps."""
    settings = {f"the recipe's {key}": repr(value) for key, value in recipe.describe().items()}
    planned = {f"the pattern of {e.name!r}": f"{e.pattern} of shape {e.shape}" for e in plan.sparse}
    more = {
        "the recipe's total_steps": repr(recipe.total_steps),
        "the optimizer": type(optimizer).__name__,
        "on_nonfinite": repr(on_nonfinite),
        "trace": repr(options),
        "the work of nmstep's kernels": "done by torch" if status().active == "torch" else "compiled",
    }
    return {**settings, **planned, **more, **hyperparameters(optimizer)}
