"""Calls of ``pack``, ``unpack``, ``save_packed``, ``load_packed`` and ``export_dense``."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import nmstep
from soak.calls import oracles
from soak.calls.contract import Answer, call, expect
from soak.calls.verifying import linears, pruned_to

__all__ = ["check_export", "check_pack", "check_save", "pack_cases"]

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02, torch.int8: 0.1}
pack_cases = st.fixed_dictionaries(
    {
        "widths": st.lists(st.sampled_from([1, 2, 4, 6, 8, 16, 24, 40, 64]), min_size=2, max_size=3),
        "made": st.sampled_from(["1:2", "2:4", "1:4", "2:8", "4:4"]),
        "pattern": st.sampled_from(["1:2", "2:4", "1:4", "2:8", "4:4", "0:4", None]),
        "broken": st.sampled_from([0, 0, 0, 1]),
        "dtype": st.sampled_from([None, None, torch.float32, torch.bfloat16, torch.float16, torch.int8, 3]),
        "fallback": st.booleans(),
        "bias": st.booleans(),
        "rows": st.integers(0, 5),
        "seed": st.integers(0, 2**31),
    }
)


def _model(case: dict[str, Any]) -> nn.Sequential:
    pairs = list(zip(case["widths"], case["widths"][1:], strict=False))
    model = nn.Sequential(*[nn.Linear(ins, outs, bias=case["bias"]) for ins, outs in pairs])
    for i, layer in enumerate(linears(model)):
        values = oracles.tensor(case["seed"] + i, tuple(layer.weight.shape))
        layer.weight.data.copy_(pruned_to(values, case["made"], case["broken"], case["seed"]))
        if case["bias"]:
            layer.bias.data.copy_(oracles.tensor(case["seed"] - i - 1 + 2**32, tuple(layer.bias.shape)))
    model.requires_grad_(False)
    return model


def _can_pack(case: dict[str, Any], model: nn.Sequential) -> bool:
    """Whether the arguments fit the model: some layer has groups, and those that have them comply."""
    if not (case["dtype"] is None or isinstance(case["dtype"], torch.dtype)) or case["pattern"] == "0:4":
        return False
    weights = [layer.weight for layer in linears(model)]
    if case["pattern"] is None:
        return any(_has_some(weight) for weight in weights)
    n, m = map(int, case["pattern"].split(":"))
    fitting = [weight for weight in weights if weight.shape[1] % m == 0]
    return n < m and bool(fitting) and all(oracles.complies(weight, n, m, 1) for weight in fitting)


def _has_some(weight: torch.Tensor) -> bool:
    """Whether the zeros of a weight make it N:M for some M of 2, 4, … 64."""
    return any(
        weight.shape[1] % m == 0 and oracles.complies(weight, m - 1, m, 1) for m in (2, 4, 8, 16, 32, 64)
    )


def _packed(case: dict[str, Any], model: nn.Sequential) -> nn.Module | None:
    arguments = {"dtype": case["dtype"], "fallback": case["fallback"]}
    outcome = call(nmstep.pack, model, case["pattern"], **arguments)
    expect(outcome, True if _can_pack(case, model) else None, lambda _, theirs: bool(theirs))
    return outcome.value if isinstance(outcome, Answer) else None


def check_pack(case: dict[str, Any]) -> None:
    """One packing: weights come back to the bit, and outputs are those of the dense layers."""
    model = _model(case)
    packed = _packed(case, model)
    if packed is None:
        return
    back = call(nmstep.unpack, packed)
    assert isinstance(back, Answer), back
    exact = case["dtype"] in (None, torch.float32)
    for name, weight in model.state_dict().items():
        own = back.value.state_dict()[name].float()
        assert torch.equal(own, weight) if exact else own.shape == weight.shape, f"{name} came back otherwise"
        assert bool((own[weight == 0] == 0).all()), f"{name} has other zeros"
    x = oracles.tensor(case["seed"] + 99, (case["rows"], case["widths"][0])).float()
    expected = model.double()(x.double())
    y = packed(x).double()
    near = _TOLERANCE[case["dtype"] or torch.float32] * (1 + float(expected.abs().max() if y.numel() else 0))
    assert y.shape == expected.shape, "an output of another shape"
    assert not y.numel() or float((y - expected).abs().max()) <= near, "an output of another value"


def check_save(case: dict[str, Any]) -> None:
    """One file: what is read is what was written."""
    packed = _packed(case, _model(case))
    if packed is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        shards = None if case["seed"] % 2 else 100
        written = call(nmstep.save_packed, packed, path, shard_bytes=shards)
        assert isinstance(written, Answer), written
        with torch.device("meta"):
            skeleton = nn.Sequential(*[nn.Linear(*pair, bias=case["bias"]) for pair in _pairs(case)])
        place = path if shards is None else Path(f"{path}.index.json")
        read = call(nmstep.load_packed, place, skeleton, fallback=case["fallback"])
        assert isinstance(read, Answer), read
        for name, tensor in packed.state_dict().items():
            assert torch.equal(read.value.state_dict()[name], tensor), f"{name} was read otherwise"


def _pairs(case: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(case["widths"], case["widths"][1:], strict=False))


def check_export(case: dict[str, Any]) -> None:
    """One dense export: read by safetensors itself, the same weights."""
    model = _model(case)
    n, m = map(int, (case["pattern"] or "1:1").split(":"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        outcome = call(nmstep.export_dense, model, out, pattern=case["pattern"])
        if not isinstance(outcome, Answer):
            assert not out.exists(), "something stayed of what was refused"
            fitting = [layer.weight for layer in linears(model) if layer.weight.shape[1] % m == 0]
            told = case["pattern"] is None or n == 0 or not fitting or math.isclose(n, m)
            assert told or not all(oracles.complies(weight, n, m, 1) for weight in fitting), outcome.error
            return
        read = load_file(out / "model.safetensors")
        assert read.keys() == model.state_dict().keys(), "other names"
        assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
