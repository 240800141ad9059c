"""Every recipe agrees with the twin in fp64 over 60 steps across the switch, on parameters and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import nmstep
from reference import Method, Twin

STEPS, SWITCH = 60, 25


class Net(nn.Module):
    """A Linear, a Conv2d or a Conv1D layer with 112 inputs, which 4, 7, 8 and 16 divide, and a dense tail."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = {
            "linear": nn.Linear,
            "conv": lambda i, o: nn.Conv2d(i, o, 2),
            "conv1d": lambda i, o: Conv1D(o, i),
        }[kind](112, 6)
        self.tail = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "conv":
            x = x.reshape(x.shape[0], 112, 1, 1).expand(-1, -1, 3, 3)
            return self.tail(torch.tanh(self.layer(x)).mean((2, 3)))
        return self.tail(torch.tanh(self.layer(x)))


def loss_of(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), x[:, :3].argmax(1))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 112, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def halving(n: int, m: int, steps: int) -> int:
    stage = steps // 10
    return max(n, m - 1 if stage == 0 else m // 2**stage)


RECIPES: dict[str, tuple[Callable[[Any], nmstep.Recipe], Method]] = {
    "dense": (lambda _: nmstep.Dense(), Method(start=None)),
    "asp at 0": (lambda p: nmstep.ASP(p), Method(once=True)),
    "asp later": (lambda p: nmstep.ASP(p, start=SWITCH), Method(start=SWITCH, once=True)),
    "ste": (lambda p: nmstep.STE(p), Method()),
    "sr-ste": (lambda p: nmstep.SRSTE(p, refine=0.05), Method(refine=0.05)),
    "decaying mask": (lambda p: nmstep.DecayingMask(p, interval=10), Method(kept_after=halving)),
    "decaying mask, dense first": (
        lambda p: nmstep.DecayingMask(p, dense_steps=SWITCH, interval=10),
        Method(start=SWITCH, kept_after=halving),
    ),
    "step": (lambda p: nmstep.STEP(p, switch=nmstep.SwitchAt(SWITCH)), Method(start=SWITCH, freeze=True)),
    "step, v uncorrected": (
        lambda p: nmstep.STEP(p, switch=nmstep.SwitchAt(SWITCH), correct_bias=False, eps_root=1e-6),
        Method(start=SWITCH, freeze=True, correct_bias=False, eps_root=1e-6),
    ),
    "step, v updated": (
        lambda p: nmstep.STEP(p, switch=nmstep.SwitchAt(SWITCH), freeze_variance=False),
        Method(start=SWITCH),
    ),
}


def train(
    kind: str, pattern: str, recipe: str, foreach: bool, decay: float, decoupled: bool
) -> tuple[Net, nmstep.AdamW, nmstep.Sparsifier, Twin]:
    make, method = RECIPES[recipe]
    model = Net(kind).double()
    n, m = map(int, pattern.split(":"))
    twin = Twin(
        model,
        loss_of,
        {"layer.weight": (n, m, 0 if kind == "conv1d" else 1)},
        method,
        lr=1e-2,
        decay=decay,
        decoupled=decoupled,
    )
    optimizer = nmstep.AdamW(
        model.parameters(), lr=1e-2, weight_decay=decay, foreach=foreach, decoupled_weight_decay=decoupled
    )
    recipe_ = make(nmstep.plan(model, pattern, exclude=["tail"]))
    sparsifier = nmstep.sparsify(model, optimizer, recipe_)
    for batch in batches():
        optimizer.zero_grad()
        loss_of(model, dict(model.named_parameters()), batch).backward()
        optimizer.step()
        twin.step(batch)
    return model, optimizer, sparsifier, twin


def close(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp_min(1e-30)
    assert float((actual.detach() - expected).abs().max() / scale) < 1e-9


def check(model: Net, optimizer: nmstep.AdamW, twin: Twin) -> None:
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        close(p, twin.masked()[name])
        close(p + state.get("pruned", 0), twin.w[name])
        close(state["exp_avg"], twin.m[name])
        close(state["exp_avg_sq"], twin.v[name] if twin.v_star is None else twin.v_star[name])
        assert state["step"] == STEPS
    if "layer.weight" in twin.masks:
        cut = model.layer.weight == 0
        assert torch.equal(cut, ~twin.masks["layer.weight"])


@pytest.mark.parametrize("kind", ["linear", "conv", "conv1d"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8", "1:16", "3:7", "5:8"])
def test_step_agrees_for_every_pattern_and_layer(kind: str, pattern: str) -> None:
    model, optimizer, sparsifier, twin = train(
        kind, pattern, "step", foreach=False, decay=0.01, decoupled=True
    )
    assert sparsifier.switch_step == SWITCH
    check(model, optimizer, twin)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("foreach", "decoupled"), [(False, True), (True, True), (False, False)])
def test_every_recipe_agrees(recipe: str, foreach: bool, decoupled: bool) -> None:
    model, optimizer, _, twin = train("linear", "1:4", recipe, foreach, decay=0.01, decoupled=decoupled)
    check(model, optimizer, twin)


def test_the_twin_notices_a_wrong_recipe() -> None:
    model, optimizer, _, _ = train("linear", "1:4", "ste", foreach=False, decay=0.0, decoupled=True)
    torch.manual_seed(0)
    *_, twin = train("linear", "1:4", "sr-ste", foreach=False, decay=0.0, decoupled=True)
    with pytest.raises(AssertionError):
        check(model, optimizer, twin)
