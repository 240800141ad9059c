"""Calls that read files of which some bytes are wrong."""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import tempfile
from collections.abc import Callable
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

_KINDS = ("packed", "safetensors", "checkpoint", "old checkpoint", "onnx", "plan", "config", "json", "pickle")
_ENDINGS = {"packed": ".safetensors", "safetensors": ".safetensors", "onnx": ".onnx"}
_ENDINGS |= dict.fromkeys(("plan", "config", "json"), ".json")
damaged_cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([*_KINDS, "packed"]),
        "seed": st.integers(0, 2**31),
        "changes": st.sampled_from([1, 1, 2, 4]),
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
        layer.weight.data.copy_(values * oracles.masked(values, 2, 8, 1))
    plan = nmstep.plan(model, "2:8")
    held = io.BytesIO()
    match kind:
        case "packed":
            with tempfile.TemporaryDirectory() as folder:
                # Narrow values, so that places are a good part of the file.
                packed = nmstep.pack(model, dtype=torch.bfloat16)
                nmstep.save_packed(packed, Path(folder) / "x.safetensors")
                return (Path(folder) / "x.safetensors").read_bytes()
        case "safetensors":
            from safetensors.torch import save

            return bytes(save(model.state_dict(), {"nm_sparsity": json.dumps(plan.to_dict())}))
        case "checkpoint" | "old checkpoint":
            state = {"model": model.state_dict(), "nm_sparsity": plan.to_dict()}
            torch.save(state, held, _use_new_zipfile_serialization=kind == "checkpoint")
            return held.getvalue()
        case "onnx":
            return _onnx(model, json.dumps(plan.to_dict()))
        case "plan":
            return json.dumps(plan.to_dict()).encode()
        case "pickle":
            rows = {"data": bytes(range(256)) * 4, "labels": list(range(30)), "name": "räder", "deep": [[()]]}
            return pickle.dumps(rows, protocol=2)
        case _:
            return json.dumps(RunConfig(pattern="2:4").to_dict()).encode()


def _onnx(model: nn.Sequential, plan: str) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    names, weights = zip(*model.named_parameters(), strict=True)
    held = [
        numpy_helper.from_array(weight.detach().numpy(), name)
        for name, weight in zip(names, weights, strict=True)
    ]
    nodes = [helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1)]
    nodes.append(helper.make_node("Gemm", ["h", "1.weight"], ["y"], transB=1))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 32), ("y", 16))
    ]
    made = helper.make_model(helper.make_graph(nodes, "soak", ends[:1], ends[1:], held))
    helper.set_model_props(made, {"nm_sparsity": plan})
    return bytes(made.SerializeToString())


def _damaged(data: bytes, seed: int, changes: int, early: bool) -> bytes:
    """Returns the bytes with some flipped, cut, doubled, or put elsewhere."""
    chance, damaged = random.Random(seed), bytearray(data)
    for _ in range(changes):
        most = max(1, min(len(damaged), 1500) if early else len(damaged))
        place, length = chance.randrange(most), chance.randrange(1, 9)
        match chance.randrange(10):
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
        path = Path(folder) / f"x{_ENDINGS.get(kind, '.pt')}"
        path.write_bytes(data)
        match kind:
            case "packed":
                _check_packed(path)
            case "safetensors" | "checkpoint" | "old checkpoint" | "onnx":
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
    """Reads a packed file; what is read is what its patterns say, and computes what its dense weights do."""
    outcome = call(nmstep.load_packed, path, _model(), fallback=False)
    if not isinstance(outcome, Answer):
        return
    packed, dense_model = outcome.value, nmstep.unpack(outcome.value)
    for layer, dense in zip(packed, linears(dense_model), strict=True):
        x = torch.ones(3, dense.in_features)
        ours, bias = layer(x).double(), 0 if dense.bias is None else dense.bias.double()
        theirs = x.double() @ dense.weight.double().t() + bias
        near = 1e-2 * (1 + dense.weight.double().abs().sum(1)) + 1e-2 * abs(bias)
        assert ours.shape == theirs.shape, "an output of another shape"
        wrong = ((ours - theirs).abs() > near) & theirs.isfinite() & ours.isfinite()
        assert not bool(wrong.any()), "an output that is not the weights'"
        pattern = getattr(layer, "pattern", NMPattern(1, 1))
        assert oracles.complies(dense.weight, pattern.n, pattern.m, 1), "not N:M"


def _check_report(report: nmstep.VerifyReport, path: Path) -> None:
    """Reads what was found to comply by the library of its format, and counts."""
    read = _reader(path)
    for found in report.tensors:
        if found.status == "ok":
            assert found.pattern is not None
            weight, dim = read(found.name), found.dim or 0
            assert oracles.complies(weight, found.pattern.n, found.pattern.m, dim), f"{found.name} is not N:M"


def _reader(path: Path) -> Callable[[str], torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path).__getitem__
    if path.suffix == ".onnx":
        import onnx

        held = {t.name: t for t in onnx.load(path).graph.initializer}
        return lambda name: torch.from_numpy(onnx.numpy_helper.to_array(held[name]).copy())
    is_archive = path.read_bytes()[:2] == b"PK"
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)[
        "model"
    ]
    return state.__getitem__
