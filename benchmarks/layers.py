"""Layers of every layout in which groups lie in memory, and an optimizer's step on them without a model around."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from transformers.pytorch_utils import Conv1D

from nmstep.admission import ATTACHED
from nmstep.timing import Step

__all__ = ["LAYOUTS", "aliased", "linear", "step_alone", "weights_in", "written"]

_MULTIPLE = 32  # so that every pattern up to 1:32 divides


def linear(weights: int) -> nn.Module:
    """Returns a square Linear of about so many weights: groups lie contiguous."""
    side = _side(weights)
    return nn.Linear(side, side, bias=False)


def _conv1d(weights: int) -> nn.Module:
    """Returns GPT-2's linear layer, of weight (in, out): groups run down the columns."""
    side = _side(weights)
    layer: nn.Module = Conv1D(side, side)  # type: ignore[no-untyped-call]
    layer.register_parameter("bias", None)
    return layer


def _conv2d(weights: int) -> nn.Conv2d:
    channels = _side(weights / 9)
    return nn.Conv2d(channels, channels, 3, bias=False)


def _conv2d_channels_last(weights: int) -> nn.Module:
    layer = _conv2d(weights)
    layer.weight = nn.Parameter(layer.weight.detach().contiguous(memory_format=torch.channels_last))
    return layer


LAYOUTS: dict[str, Callable[[int], nn.Module]] = {
    "Linear": linear,
    "Conv1D": _conv1d,
    "Conv2d": _conv2d,
    "Conv2d channels_last": _conv2d_channels_last,
}


def weights_in(model: nn.Module) -> int:
    """Returns how many weights a model holds."""
    return sum(p.numel() for p in model.parameters())


def written(weights: int) -> str:
    """Returns a number of weights for people.

    Example:
        >>> written(9_216), written(100_320_256)
        ('9.2 k weights', '100.3 M weights')
    """
    return f"{weights / 1e6:.1f} M weights" if weights >= 1e6 else f"{weights / 1e3:.1f} k weights"


def step_alone(model: nn.Module, optimizer: Optimizer) -> Step:
    """Returns all that a method adds to forward and backward pass: the optimizer's step, on gradients of noise.

    Where the forward pass chooses the masks, that and what it does to the gradients belong to it too.

    Args:
        model: whose every layer has one weight and no bias.
        optimizer: of a method that was attached to it.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)]
    gradients = [1e-3 * torch.randn_like(layer.weight) for layer in layers]
    if not any(parametrize.is_parametrized(layer) for layer in layers):
        for layer, gradient in zip(layers, gradients, strict=True):
            layer.weight.grad = gradient
        return optimizer.step

    def forward_and_step() -> None:
        for layer, gradient in zip(layers, gradients, strict=True):
            layer.weight.backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    return forward_and_step


def captured(step: Step, optimizer: Optimizer) -> Step:
    """Returns what replays a step from a CUDA graph, and tells the sparsifier.

    Args:
        step: of :func:`step_alone`; taken at most thrice before it is captured.
        optimizer: whose step; with ``capturable=True``, and a sparsifier whose masks start right away.
    """
    sparsifier = getattr(optimizer, ATTACHED)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
        with torch.cuda.graph(graph, stream=stream):
            step()
    torch.cuda.synchronize()

    def replay() -> None:
        graph.replay()
        if sparsifier.replayed():
            raise RuntimeError("the graph is of no use any more: the recipe went on")

    return replay


def _side(weights: float) -> int:
    """Returns a side that is no large power of two: see :func:`aliased`."""
    side = max(1, round(math.sqrt(weights) / _MULTIPLE)) * _MULTIPLE
    return side + _MULTIPLE if side >= 1024 and side.bit_count() == 1 else side


def aliased(weights: int) -> nn.Module:
    """Returns a square Linear whose side is a power of two.

    Its tensors are as far apart in memory as they are long, so that equal places of all of them fall on the same
    lines of the caches: the more tensors a step reads, the more it suffers.
    """
    side = 1 << round(math.log2(math.sqrt(weights)))
    return nn.Linear(side, side, bias=False)
