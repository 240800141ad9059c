"""Calls of ``sparsify`` and the steps that follow, beside the papers' formulas."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import nmstep
from soak.calls import oracles
from soak.calls.contract import Answer, call, expect

__all__ = ["check_training", "training_cases"]

_BETAS, _EPS = (0.9, 0.99), 1e-8
training_cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["ste", "sr-ste", "asp", "decaying", "step", "step, updated"]),
        "n": st.integers(1, 8),
        "m": st.sampled_from([1, 2, 4, 8]),
        "groups": st.integers(1, 3),
        "outputs": st.integers(1, 5),
        "start": st.integers(0, 4),
        "steps": st.integers(0, 8),
        "refine": st.sampled_from([0.0, 2e-4, 0.5]),
        "decay": st.sampled_from([0.0, 0.1]),
        "interval": st.integers(1, 3),
        "seed": st.integers(0, 2**31),
        "dtype": st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]),
    }
)


@dataclass
class _Paper:
    """Adam with masks on one weight, as the papers write it, in float64."""

    case: dict[str, Any]
    w: Tensor

    def __post_init__(self) -> None:
        self.first = torch.zeros_like(self.w)
        self.second = torch.zeros_like(self.w)
        self.frozen: Tensor | None = None
        self.mask: Tensor | None = None
        self.t = 0
        self._choose()

    def _choose(self) -> None:
        kind, since = self.case["kind"], self.t - _start(self.case)
        if since < 0 or (kind == "asp" and self.mask is not None):
            return
        n, m = self.case["n"], self.case["m"]
        if kind == "decaying":
            stage = since // self.case["interval"]
            n = max(n, m - 1 if stage == 0 else m // 2**stage)
        self.mask = oracles.masked(self.w, n, m, 1)
        if kind == "asp":
            self.w = self.w * self.mask

    def step(self, gradient: Tensor, lr: float) -> None:
        kind = self.case["kind"]
        if self.mask is not None and kind == "asp":
            gradient = gradient * self.mask
        if self.mask is not None and kind == "sr-ste":
            gradient = gradient + self.case["refine"] * ~self.mask * self.w
        self.t += 1
        beta1, beta2 = _BETAS
        self.w = self.w - lr * self.case["decay"] * self.w
        self.first = beta1 * self.first + (1 - beta1) * gradient
        if self.frozen is None:
            self.second = beta2 * self.second + (1 - beta2) * gradient**2
            divisor = (self.second / (1 - beta2**self.t)).sqrt() + _EPS
        else:
            divisor = (self.frozen + 1e-8).sqrt() + _EPS
        self.w = self.w - lr * self.first / (1 - beta1**self.t) / divisor
        if self.mask is not None and kind == "asp":
            self.w = self.w * self.mask
        if kind == "step" and self.t == _start(self.case):
            self.frozen = self.second / (1 - beta2**self.t)
        self._choose()

    @property
    def seen(self) -> Tensor:
        """The weight that the model runs with."""
        return self.w if self.mask is None else self.w * self.mask


def _start(case: dict[str, Any]) -> int:
    return case["start"] if case["kind"] in ("asp", "decaying", "step", "step, updated") else 0


def _recipe(case: dict[str, Any]) -> nmstep.Recipe:
    pattern, start = f"{case['n']}:{case['m']}", case["start"]
    match case["kind"]:
        case "ste":
            return nmstep.STE(pattern)
        case "sr-ste":
            return nmstep.SRSTE(pattern, refine=case["refine"])
        case "asp":
            return nmstep.ASP(pattern, start=start)
        case "decaying":
            return nmstep.DecayingMask(pattern, start, interval=case["interval"])
        case kind:
            return nmstep.STEP(pattern, switch=nmstep.SwitchAt(start), freeze_variance=kind == "step")


def check_training(case: dict[str, Any]) -> None:
    """Some steps of a recipe: the papers' weights where rounding allows to tell, and N:M in every dtype."""
    n, m = case["n"], case["m"]
    made = call(_recipe, case, like=nmstep.Recipe)
    valid = n <= m and not (case["kind"] == "step" and case["start"] == 0)
    expect(made, True if valid else None, lambda _, theirs: bool(theirs))
    if not isinstance(made, Answer):
        return
    layer = nn.Linear(m * case["groups"], case["outputs"], bias=False, dtype=case["dtype"])
    weight = layer.weight
    values = oracles.tensor(case["seed"], tuple(weight.shape)).to(case["dtype"])
    weight.data.copy_(values)
    optimizer = nmstep.AdamW(layer.parameters(), lr=0.1, betas=_BETAS, weight_decay=case["decay"])
    sparsifier = call(nmstep.sparsify, layer, optimizer, made.value)
    assert isinstance(sparsifier, Answer), sparsifier
    paper = _Paper(case, values.double())
    for i in range(case["steps"]):
        gradient = oracles.tensor(case["seed"] + 1 + i, tuple(weight.shape)).to(case["dtype"])
        weight.grad = gradient.clone()
        optimizer.step()
        paper.step(gradient.double(), 0.1)
        _check_state(sparsifier.value, optimizer, weight, paper)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsifier.value.finalize()
    assert oracles.complies(weight, n, m, 1), "not N:M at the end"
    assert set(optimizer.state[weight]) <= {"step", "exp_avg", "exp_avg_sq"}, "something stayed behind"


def _check_state(
    sparsifier: nmstep.Sparsifier, optimizer: nmstep.AdamW, weight: Tensor, paper: _Paper
) -> None:
    case, pruned = paper.case, optimizer.state[weight].get("pruned")
    assert sparsifier.phase == ("dense" if paper.mask is None else "sparse"), "another phase"
    if paper.mask is not None and case["kind"] != "decaying":
        assert oracles.complies(weight, case["n"], case["m"], 1), "not N:M"
    if pruned is not None:
        assert not bool(((pruned != 0) & (weight != 0)).any()), "a weight is kept and cut"
    if case["dtype"] is torch.float64:
        assert torch.allclose(weight, paper.seen, rtol=1e-9, atol=1e-11), "other weights than the papers'"
