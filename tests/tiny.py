"""A model and training steps small enough for every test."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def net() -> nn.Sequential:
    """Returns two Linear layers without biases, the same weights every time."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32, bias=False), nn.GELU(), nn.Linear(32, 8, bias=False))


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    """Adds the gradient of a random batch and returns its loss."""
    generator = torch.Generator().manual_seed(seed)
    loss = (model(torch.randn(16, 16, generator=generator)) - 1).square().mean()
    loss.backward()
    return loss


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    """Takes ``count`` steps on the batches from number ``first`` on."""
    for i in range(first, first + count):
        optimizer.zero_grad()
        backward(model, i)
        optimizer.step()
