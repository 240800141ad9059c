"""Running a step's closure before the step, while the parameters still hold the weights that run."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["run_closure"]


def run_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Runs the closure among a step's arguments and puts one in its place that only returns its value.

    Args:
        args: of ``optimizer.step``, the optimizer first.
        kwargs: likewise.

    Returns:
        The arguments to go on with, and what the closure returned; None without one.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return args, kwargs, None
    with torch.enable_grad():
        loss = closure()
    if "closure" in kwargs:
        return args, {**kwargs, "closure": lambda: loss}, loss
    return (args[0], lambda: loss, *args[2:]), kwargs, loss
