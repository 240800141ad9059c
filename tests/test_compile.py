"""torch.compile around the optimizer's step, and around a whole iteration: the same weights as without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import nmstep

STEPS, SWITCH = 8, 3


def adamw(model: nn.Module) -> Optimizer:
    return nmstep.AdamW(model.parameters(), lr=1e-2)


def fused(model: nn.Module) -> Optimizer:
    return nmstep.AdamW(model.parameters(), lr=1e-2, fused=True)


def sgd(model: nn.Module) -> Optimizer:
    # torch 2.11 would choose foreach where it is compiled, and the for-loop where it is not.
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)


def as_it_is(work: Any) -> Any:
    return work


def compiled(work: Callable[[], Any]) -> Callable[[], Any]:
    torch.compiler.reset()
    return torch.compile(work, backend="eager")  # traced, cut into graphs, and not translated


def train(
    make: Callable[[nn.Module], Optimizer], treat: Callable[..., Any], what: str
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
    optimizer = make(model)
    recipe = (
        nmstep.STEP("2:4", switch=nmstep.SwitchAt(SWITCH))
        if isinstance(optimizer, nmstep.AdamW)
        else nmstep.SRSTE("2:4")
    )
    sparsifier = nmstep.sparsify(model, optimizer, recipe)
    x, y = torch.randn(32, 16), torch.randn(32, 8)

    def step() -> None:
        optimizer.step()

    take = treat(step) if what == "step" else step

    def iteration() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        take()

    iterate = treat(iteration) if what == "iteration" else iteration
    for _ in range(STEPS):
        iterate()
    assert sparsifier.step == STEPS
    return model.state_dict()


# torch's own, as it traces SGD.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("what", ["step", "iteration"])
@pytest.mark.parametrize("make", [adamw, fused, sgd])
def test_a_compiled_step_is_the_same_step(make: Callable[[nn.Module], Optimizer], what: str) -> None:
    if make is fused and nmstep.kernels.status().active == "torch":
        pytest.skip("needs kernels")
    plain, traced = train(make, as_it_is, what), train(make, compiled, what)
    for name, weight in plain.items():
        assert torch.equal(weight, traced[name]), name


def wide(model: nn.Module) -> Optimizer:
    return nmstep.AdamW(model.parameters(), lr=1e-2, state_dtype=torch.float32)


@pytest.mark.parametrize("make", [adamw, wide])
def test_a_compiled_model_is_trained_as_it_is_without(make: Callable[[nn.Module], Optimizer]) -> None:
    def trained(treat: Callable[[nn.Module], Any]) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
        model = model.bfloat16() if make is wide else model
        run = treat(model)
        optimizer = make(run)
        sparsifier = nmstep.sparsify(run, optimizer, nmstep.STEP("2:4", switch=nmstep.SwitchAt(SWITCH)))
        x, y = torch.randn(32, 16), torch.randn(32, 8)
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(run(x).float(), y)
            loss.backward()
            optimizer.step()
            with sparsifier.latent(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                run(x)  # guards hold no weight's values
        return model

    torch.compiler.reset()
    plain, traced = trained(as_it_is), trained(lambda model: torch.compile(model, backend="eager"))
    for p, q in zip(plain.parameters(), traced.parameters(), strict=True):
        assert torch.equal(p, q)
    assert nmstep.verify(traced, "2:4").ok


def test_the_mask_is_kept_under_compile() -> None:
    groups = train(adamw, compiled, "iteration")["0.weight"].reshape(16, 4, 4)
    assert (groups.count_nonzero(-1) == 2).all()
