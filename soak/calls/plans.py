"""Calls of ``plan``."""

from __future__ import annotations

import fnmatch
import math
from typing import Any

from hypothesis import strategies as st
from torch import nn

import nmstep
from soak.calls.contract import call, expect
from soak.calls.masks import patterns, read

__all__ = ["build", "check_plan", "layer_cases", "plan_cases"]

_width = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16])
_groups = st.sampled_from([1, 1, 1, 2])
layer_cases = st.one_of(
    st.tuples(st.just("linear"), _width, _width, st.booleans()),
    st.tuples(st.just("linear"), _width, _width, st.booleans()),
    st.tuples(st.just("conv"), _width, _width, _groups),
    st.tuples(st.just("turned"), _width, _width, _groups),
    st.tuples(st.just("embedding"), _width, _width, st.just(0)),
    st.tuples(st.just("norm"), _width, _width, st.just(0)),
    st.tuples(st.just("nested"), _width, _width, st.booleans()),
)
_globs = st.lists(
    st.sampled_from(["0", "1", "2", "0.weight", "*.weight", "*", "1.0", "*.bias", "nothing", "[01]"]),
    max_size=2,
)
#: A model's layers, and the arguments of ``plan``.
plan_cases = st.fixed_dictionaries(
    {
        "layers": st.lists(layer_cases, min_size=0, max_size=4),
        "pattern": st.one_of(*[patterns(8)] * 9, st.sampled_from([None, 4])),
        "include": st.one_of(st.none(), st.none(), _globs),
        "exclude": _globs,
        "on_indivisible": st.sampled_from(["dense", "dense", "error", "pad", "pda"]),
    }
)


def _layer(kind: str, ins: int, outs: int, more: int) -> nn.Module:
    match kind:
        case "linear":
            return nn.Linear(ins, outs, bias=bool(more))
        case "conv" if ins % more == 0 and outs % more == 0:
            return nn.Conv2d(ins, outs, 2, groups=more)
        case "turned" if ins % more == 0 and outs % more == 0:
            return nn.ConvTranspose2d(ins, outs, 2, groups=more)
        case "embedding":
            return nn.Embedding(ins, outs)
        case "nested":
            return nn.Sequential(nn.Linear(ins, outs, bias=bool(more)), nn.ReLU())
        case _:
            return nn.LayerNorm(ins)


def build(layers: list[tuple[str, int, int, int]]) -> nn.Sequential:
    """Returns a model of these layers; they need not fit together."""
    return nn.Sequential(*[_layer(*layer) for layer in layers])


def check_plan(case: dict[str, Any]) -> None:
    """One plan: which parameters, along which dimension, padded or not."""
    model = build(case["layers"])
    arguments = {name: case[name] for name in ("include", "exclude", "on_indivisible")}
    outcome = call(nmstep.plan, model, case["pattern"], **arguments)
    expect(outcome, _sparse(model, case), lambda ours, theirs: _entries(ours) == theirs)


def _entries(plan: nmstep.SparsityPlan) -> dict[str, tuple[int | None, bool]]:
    return {entry.name: (entry.dim, entry.pad) for entry in plan.sparse}


def _sparse(model: nn.Module, case: dict[str, Any]) -> dict[str, tuple[int | None, bool]] | None:
    """Returns the parameters that become sparse, or None where the call must be refused."""
    pattern, how = read(case["pattern"]), case["on_indivisible"]
    names = [name for name, _ in model.named_parameters()]
    globs = [*(case["include"] or []), *case["exclude"]]
    if pattern is None or how not in ("dense", "error", "pad"):
        return None
    if not all(any(_covers(glob, name) for name in names) for glob in globs):
        return None
    found: dict[str, tuple[int | None, bool]] = {}
    for name, parameter in model.named_parameters():
        dim = _summed_over(model.get_submodule(name.rpartition(".")[0]), name)
        if dim is None or any(_covers(glob, name) for glob in case["exclude"]):
            continue
        if case["include"] is not None and not any(_covers(glob, name) for glob in case["include"]):
            continue
        whole = math.fmod(parameter.shape[dim], pattern[1]) == 0
        if not whole and how == "error":
            return None
        if whole or how == "pad":
            found[name] = (dim, not whole)
    return found or None


def _summed_over(module: nn.Module, name: str) -> int | None:
    if not name.endswith("weight"):
        return None
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return 1
    return 0 if isinstance(module, nn.ConvTranspose2d) and module.groups == 1 else None


def _covers(glob: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), glob) for i in range(len(parts)))
