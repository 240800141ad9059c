"""Finding the sparsifier of an optimizer, through the wrappers that trainers put around it."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim import Optimizer

from nmstep.admission import ATTACHED, wrapped_by
from nmstep.sparsify import Sparsifier

__all__ = ["check_sparsifier", "find_sparsifier", "sparsifier_of", "unwrapped", "warn_of_lost_state"]


def unwrapped(optimizer: Any) -> Any:
    """Returns the optimizer inside of the wrappers of Accelerate, Lightning and the like, or itself.

    Example:
        >>> import torch
        >>> inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
        >>> class Wrapper:
        ...     optimizer = inner
        >>> unwrapped(Wrapper()) is inner, unwrapped(inner) is inner
        (True, True)
    """
    seen: set[int] = set()
    while (inner := wrapped_by(optimizer)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        optimizer = inner
    return optimizer


def find_sparsifier(optimizer: Any) -> Sparsifier | None:
    """Returns the sparsifier of an optimizer, wrapped or not, or None where it has none."""
    found = getattr(unwrapped(optimizer), ATTACHED, None)
    return found if isinstance(found, Sparsifier) else None


def sparsifier_of(optimizer: Any, *, needed_by: str, way_out: str) -> Sparsifier:
    """Returns the sparsifier of an optimizer, wrapped or not.

    Args:
        optimizer: what a trainer hands out.
        needed_by: who asks, for the message.
        way_out: what to do, for the message.

    Raises:
        ValueError: it has no sparsifier.
    """
    found = find_sparsifier(optimizer)
    if found is None:
        inner = unwrapped(optimizer)
        kind = type(inner).__name__ if isinstance(inner, Optimizer) else repr(inner)
        raise ValueError(f"{needed_by} found no sparsifier on this trainer's optimizer ({kind}): {way_out}")
    return found


def check_sparsifier(given: Any, *, needed_by: str) -> None:
    """Raises TypeError unless what a function was given is a sparsifier.

    Args:
        given: the argument.
        needed_by: the function, for the message.
    """
    if not isinstance(given, Sparsifier):
        raise TypeError(
            f"{needed_by} takes the Sparsifier that nmstep.sparsify returned (or prepare, of Accelerate), got a "
            f"{type(given).__name__}"
        )


def warn_of_lost_state(sparsifier: Sparsifier, *, resumed_at: int) -> None:
    """Warns where a trainer goes on from a checkpoint that had nothing of the recipe in it.

    Args:
        sparsifier: after the checkpoint was loaded.
        resumed_at: the step that the trainer goes on from; 0 for a new run.
    """
    if resumed_at > 0 and sparsifier.step == 0 and sparsifier.plan.sparse:
        warnings.warn(
            f"the trainer goes on from step {resumed_at}, but its checkpoint held no optimizer state of a "
            f"sparsifier: {sparsifier.recipe.name} begins anew and counts from 0, without what its masks had cut "
            f"away. Save the optimizer's state too (no save_only_model); to make a dense model sparse, begin a new "
            f"run from its weights",
            stacklevel=2,
        )
