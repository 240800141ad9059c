"""The cases of torch's own optimizer tests, and the kinds of nmstep.AdamW that they are run on."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep.kernels import status

MODULE = "torch.testing._internal.common_optimizers"
SWITCH = 3
KERNELS = status().active != "torch"

# Attached to the optimizer, and what it does to the weights: None, "mask" or "mask and frozen variance".
RECIPES: dict[str, Callable[[], nmstep.Recipe] | None] = {
    "dense": None,
    "sparse": lambda: nmstep.SRSTE("2:4"),
    "step": lambda: nmstep.STEP("2:4", switch=nmstep.SwitchAt(SWITCH)),
}


def load() -> Any:
    """Returns torch's OptimizerInfo of AdamW; skips the test where that private module has changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: Any = importlib.import_module(MODULE)
        except (ImportError, AttributeError) as error:
            pytest.skip(f"{MODULE} cannot be imported: {error}")
    # It forbids to set flags of torch.backends from here on, which other tests need not bear.
    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)
    infos = [info for info in getattr(module, "optim_db", []) if info.optim_cls is torch.optim.AdamW]
    if not infos:
        pytest.skip(f"{MODULE} describes no AdamW any more")
    return infos[0]


class Net(nn.Module):
    """A layer that becomes sparse and a bias that does not; the same weights every time."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, contiguous: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        shape = (16, 8) if contiguous else (16, 8, 2)
        weight = torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
        bias = torch.randn(shape[:1] + shape[2:], generator=generator, dtype=torch.float32).to(dtype)
        self.layer = nn.Linear(8, 16, dtype=dtype)
        self.layer.weight = nn.Parameter(weight if contiguous else weight[..., 0])
        self.layer.bias = nn.Parameter(bias if contiguous else bias[..., 0])
        self.register_buffer("x", torch.randn(8, generator=generator, dtype=torch.float32).to(dtype))

    def loss(self) -> Tensor:
        return self.layer(self.x).pow(2).sum()

    def groups(self, **of_bias: Any) -> list[dict[str, Any]]:
        return [{"params": [self.layer.weight]}, {"params": [self.layer.bias], **of_bias}]


def sparsify(
    net: nn.Module, optimizer: torch.optim.Optimizer, kind: str, **settings: Any
) -> nmstep.Sparsifier | None:
    """Attaches the recipe of ``kind`` to the optimizer, if it has one."""
    recipe = RECIPES[kind]
    return None if recipe is None else nmstep.sparsify(net, optimizer, recipe(), **settings)


def takes(kind: str, kwargs: dict[str, Any]) -> bool:
    """Whether a recipe is for such an optimizer: with amsgrad there is no single variance to freeze."""
    return not (kind == "step" and kwargs.get("amsgrad"))


def backward(net: Net, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = net.loss()
    loss.backward()
    return loss


def train(net: Net, optimizer: torch.optim.Optimizer, steps: int = 6) -> None:
    for _ in range(steps):
        backward(net, optimizer)
        optimizer.step()


def latent(net: Net, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns copies of all weights, those that the mask cut away included."""
    return [
        p.detach() + optimizer.state.get(p, {}).get("pruned", torch.zeros_like(p)) for p in net.parameters()
    ]


def is_nm(net: Net) -> bool:
    return bool((net.layer.weight.detach().reshape(-1, 4).count_nonzero(1) <= 2).all())


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit, dtypes included."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
