"""Calls of ``verify`` on modules and state dicts."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import nmstep
from soak.calls import oracles
from soak.calls.contract import call, expect
from soak.calls.masks import patterns, read

__all__ = ["check_verify", "linears", "pruned_to", "verify_cases"]

verify_cases = st.fixed_dictionaries(
    {
        "shapes": st.lists(
            st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 3, 4, 8, 12, 16])), min_size=1, max_size=3
        ),
        "made": st.sampled_from(["1:2", "2:4", "1:4", "2:8", "4:4"]),
        "pattern": st.one_of(st.sampled_from(["1:2", "2:4", "1:4", "2:8"]), patterns(8), st.none()),
        "broken": st.sampled_from([0, 0, 1, 3]),
        "seed": st.integers(0, 2**31),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16]),
        "target": st.sampled_from(["module", "state dict", "checkpoint", "number", "nothing"]),
        "exclude": st.sampled_from([(), (), ("0",), ("nothing",)]),
    }
)


def pruned_to(weight: Tensor, pattern: str, broken: int, seed: int) -> Tensor:
    """Returns a weight with that pattern along dimension 1, and some of its zeros filled again."""
    n, m = map(int, pattern.split(":"))
    weight = weight * oracles.masked(weight, n, m, 1)
    places = torch.randint(0, weight.numel(), (broken,), generator=torch.Generator().manual_seed(seed))
    weight.view(-1)[places] = 1.0
    return weight


def linears(model: nn.Module) -> list[nn.Linear]:
    """Returns the Linear layers of a model, in order."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def check_verify(case: dict[str, Any]) -> None:
    """One verdict: groups counted in plain Python."""
    weights = [
        pruned_to(oracles.tensor(case["seed"] + i, shape), case["made"], case["broken"], case["seed"]).to(
            case["dtype"]
        )
        for i, shape in enumerate(case["shapes"])
    ]
    outcome = call(nmstep.verify, _target(case, weights), case["pattern"], exclude=case["exclude"])
    expect(outcome, _verdict(case, weights), lambda ours, theirs: _counts(ours) == theirs)


def _target(case: dict[str, Any], weights: list[Tensor]) -> Any:
    model = nn.Sequential(
        *[nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=case["dtype"]) for w in weights]
    )
    for layer, weight in zip(linears(model), weights, strict=True):
        layer.weight.data.copy_(weight)
    match case["target"]:
        case "module":
            return model
        case "state dict":
            return model.state_dict()
        case "checkpoint":
            return {"model": model.state_dict(), "step": 3}
        case "number":
            return 3
        case _:
            return {}


def _counts(report: nmstep.VerifyReport) -> dict[str, bool]:
    return {tensor.name: not tensor.failed for tensor in report.tensors if tensor.status != "dense"}


def _verdict(case: dict[str, Any], weights: list[Tensor]) -> dict[str, bool] | None:
    """Returns which weights comply, or None where the call must be refused."""
    pattern, kind = read(case["pattern"]), case["target"]
    if pattern is None or kind in ("number", "nothing") or case["exclude"] == ("nothing",):
        return None
    n, m = pattern
    verdicts = {}
    for i, weight in enumerate(weights):
        if f"{i}" in case["exclude"]:
            continue
        # Of a module the layers are known; of tensors alone, either dimension may be the one that counts.
        dims = [dim for dim in ((1,) if kind == "module" else (1, 0)) if weight.shape[dim] % m == 0]
        if kind == "module" and not dims:
            continue
        verdicts[f"{i}.weight"] = any(oracles.complies(weight, n, m, dim) for dim in dims)
    return verdicts or None
