"""Calls that read files of which some bytes are wrong."""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import nmstep
from nmstep import NMPattern
from nmstep.experiments import RunConfig
from nmstep.files import read_json
from nmstep.tasks.safe_pickle import read_pickle
from soak.calls import oracles
from soak.calls.contract import Answer, call
from soak.calls.verifying import linears

__all__ = ["check_damaged", "damaged_cases"]

_KINDS = ("packed", "safetensors", "checkpoint", "old checkpoint", "plan", "config", "json", "pickle")
damaged_cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(_KINDS),
        "seed": st.integers(0, 2**31),
        "changes": st.integers(1, 4),
        "early": st.booleans(),
    }
)


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 16, bias=False))


@functools.cache
def _whole(kind: str) -> bytes:
    """Returns a good file of each kind."""
    model = _model()
    for i, layer in enumerate(linears(model)):
        values = oracles.tensor(i, tuple(layer.weight.shape)).float()
        layer.weight.data.copy_(values * oracles.masked(values, 2, 4, 1))
    plan = nmstep.plan(model, "2:4")
    held = io.BytesIO()
    match kind:
        case "packed":
            with tempfile.TemporaryDirectory() as folder:
                nmstep.save_packed(nmstep.pack(model), Path(folder) / "x.safetensors")
                return (Path(folder) / "x.safetensors").read_bytes()
        case "safetensors":
            from safetensors.torch import save

            return bytes(save(model.state_dict(), {"nm_sparsity": json.dumps(plan.to_dict())}))
        case "checkpoint" | "old checkpoint":
            state = {"model": model.state_dict(), "nm_sparsity": plan.to_dict()}
            torch.save(state, held, _use_new_zipfile_serialization=kind == "checkpoint")
            return held.getvalue()
        case "plan":
            return json.dumps(plan.to_dict()).encode()
        case "pickle":
            rows = {"data": bytes(range(256)) * 4, "labels": list(range(30)), "name": "räder", "deep": [[()]]}
            return pickle.dumps(rows, protocol=2)
        case _:
            return json.dumps(RunConfig(pattern="2:4").to_dict()).encode()


def _damaged(data: bytes, seed: int, changes: int, early: bool) -> bytes:
    """Returns the bytes with some flipped, cut, doubled, or put elsewhere."""
    chance, damaged = random.Random(seed), bytearray(data)
    for _ in range(changes):
        most = max(1, min(len(damaged), 1500) if early else len(damaged))
        place, length = chance.randrange(most), chance.randrange(1, 9)
        match chance.randrange(7):
            case 0:
                del damaged[place:]
            case 1:
                del damaged[place : place + length]
            case 2:
                damaged[place:place] = chance.randbytes(length)
            case 3:
                damaged[place : place + length] = chance.randbytes(length)
            case 4:
                damaged[place:place] = damaged[place : place + 40]
            case 5 if damaged[place : place + 1].isdigit():
                damaged[place : place + 1] = chance.choice(
                    [b"0", b"9", b"-1", b"1e9", b"99999999999999999999"]
                )
            case _:
                if place < len(damaged):
                    damaged[place] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def check_damaged(case: dict[str, Any]) -> None:
    """One damaged file: refused with a reason, or what is read is sound in itself."""
    kind = case["kind"]
    data = _damaged(_whole(kind), case["seed"], case["changes"], case["early"])
    with tempfile.TemporaryDirectory() as folder:
        ending = {"packed": ".safetensors", "safetensors": ".safetensors", "plan": ".json", "json": ".json"}
        path = Path(folder) / f"x{ending.get(kind, '.json' if kind == 'config' else '.pt')}"
        path.write_bytes(data)
        match kind:
            case "packed":
                _check_packed(path)
            case "safetensors" | "checkpoint" | "old checkpoint":
                outcome = call(nmstep.verify, path)
                if isinstance(outcome, Answer):
                    _check_report(outcome.value, path)
            case "plan":
                outcome = call(nmstep.SparsityPlan.load, path)
                if isinstance(outcome, Answer):
                    call(outcome.value.resolve, _model())
            case "config":
                call(RunConfig.load, path)
            case "json":
                call(read_json, path)
            case _:
                call(read_pickle, path)


def _check_packed(path: Path) -> None:
    """Reads a packed file; what is read runs, and is what its patterns say."""
    outcome = call(nmstep.load_packed, path, _model())
    if not isinstance(outcome, Answer):
        return
    packed = outcome.value
    outputs = packed(torch.ones(3, 32, dtype=packed[0].bias.dtype))
    assert outputs.shape == (3, 16), "an output of another shape"
    for layer, dense in zip(packed, linears(nmstep.unpack(packed)), strict=True):
        pattern = getattr(layer, "pattern", NMPattern(1, 1))
        assert oracles.complies(dense.weight, pattern.n, pattern.m, 1), "not N:M"


def _check_report(report: nmstep.VerifyReport, path: Path) -> None:
    """Reads the same file by its own library, and counts."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
    else:
        tensors = torch.load(path, weights_only=True)["model"]
    for found in report.tensors:
        if found.status == "ok":
            assert found.pattern is not None
            weight, dim = tensors[found.name], found.dim or 0
            assert oracles.complies(weight, found.pattern.n, found.pattern.m, dim), f"{found.name} is not N:M"
