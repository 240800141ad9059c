"""Calls of ``AdamW`` before any mask: torch's own must say and do the same."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import nmstep
from soak.calls import oracles
from soak.calls.contract import Answer, call, expect

__all__ = ["check_optimizer", "optimizer_cases"]

_rates = st.one_of(st.floats(0, 1), st.floats(0, 1), st.sampled_from([-1.0, math.nan, math.inf, 0.0, 1.0]))
_betas = st.one_of(st.floats(0, 0.999), st.floats(0, 0.999), st.sampled_from([-0.1, 1.0, math.nan, 0.0]))
optimizer_cases = st.fixed_dictionaries(
    {
        "shapes": st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=3),
        "dtype": st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
        "seed": st.integers(0, 2**31),
        "kind": st.sampled_from(["normal", "ties", "special"]),
        "lr": _rates,
        "betas": st.tuples(_betas, _betas),
        "eps": _rates,
        "weight_decay": _rates,
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
        "foreach": st.sampled_from([None, True, False]),
        "lr_is_tensor": st.booleans(),
        "decoupled": st.booleans(),
        "steps": st.integers(0, 4),
        "without": st.integers(0, 3),
    }
)


def check_optimizer(case: dict[str, Any]) -> None:
    """A few steps: the same weights and moments as torch's, to the bit, or refused as torch refuses it."""
    named = {name: case[name] for name in ("betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach")}
    torchs: Any = torch.optim.AdamW if case["decoupled"] else torch.optim.Adam
    ours, theirs = _parameters(case), _parameters(case)
    lr = torch.tensor(case["lr"]) if case["lr_is_tensor"] else case["lr"]
    expected = _or_none(lambda: torchs(theirs, lr=lr, **named))
    made = call(nmstep.AdamW, ours, lr=lr, decoupled_weight_decay=case["decoupled"], **named)
    expect(made, expected, lambda _ours, _theirs: True)
    if isinstance(made, Answer):
        for i in range(case["steps"]):
            for parameters, optimizer in ((ours, made.value), (theirs, expected)):
                _give_gradients(parameters, case, i)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    optimizer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert _same(mine, other), "weights differ from torch's"
            state, reference = made.value.state.get(mine, {}), expected.state.get(other, {})
            assert state.keys() == reference.keys(), "another state than torch's"
            assert all(_same(state[key], reference[key]) for key in state), "moments differ from torch's"


def _parameters(case: dict[str, Any]) -> list[nn.Parameter]:
    return [
        nn.Parameter(oracles.tensor(case["seed"] + i, shape).to(case["dtype"]))
        for i, shape in enumerate(case["shapes"])
    ]


def _give_gradients(parameters: list[nn.Parameter], case: dict[str, Any], step: int) -> None:
    for i, parameter in enumerate(parameters):
        values = oracles.tensor(case["seed"] + 17 * step + i, tuple(parameter.shape), case["kind"])
        parameter.grad = None if i == case["without"] else values.to(case["dtype"])


def _or_none(make: Any) -> Any:
    try:
        return make()
    except ValueError:
        return None


def _same(ours: Tensor, theirs: Tensor) -> bool:
    same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return same and torch.equal(ours.detach().nan_to_num(12345), theirs.detach().nan_to_num(12345))
