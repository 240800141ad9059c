"""A function without a way back: where gradients are recorded, its backward pass is an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["no_way_back", "one_way", "refused", "wants_gradients"]


def wants_gradients(x: Tensor, bias: Tensor | None) -> bool:
    """Whether a backward pass through a product of these is recorded."""
    return torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))


def one_way(function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
    """Returns ``function(*arguments)`` as a result whose backward pass is an error."""
    if torch.compiler.is_compiling():
        stopped: Tensor = _one_way(function(*arguments))
        return stopped
    result: Tensor = _OneWay.apply(function, *arguments)  # type: ignore[no-untyped-call]
    return result


def no_way_back(*_: Any) -> Any:
    """Raises RuntimeError: the backward of an operator that has none."""
    raise RuntimeError(
        "a packed layer has no backward pass: run it under torch.no_grad(), or train the model that "
        "nmstep.unpack(model) returns"
    )


class _OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        del ctx
        return function(*arguments)

    backward = staticmethod(no_way_back)  # type: ignore[assignment]


@torch.library.custom_op("nmstep::one_way", mutates_args=())
def _one_way(y: Tensor) -> Tensor:
    return y.clone()


_one_way.register_fake(torch.empty_like)


@torch.library.custom_op("nmstep::refused", mutates_args=())
def refused(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Raises as :func:`no_way_back`: an operator, since torch.compile traces backward passes that nobody may run.

    Args:
        gradient: of a result.
        shape: of what the traced pass takes for the gradient of an input.
    """
    del gradient, shape
    nothing: Tensor = no_way_back()
    return nothing


@refused.register_fake
def _(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    return gradient.new_empty(shape)


@_one_way.register_autograd
def _(ctx: Any, gradient: Tensor) -> Tensor:
    del ctx
    traced: Tensor = refused(gradient, gradient.shape)
    return traced
