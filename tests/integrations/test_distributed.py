"""Several ranks learn the same masks and weights as one process, whichever way the model is cut."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ranked
import torch
from launch import launched, results
from ranked import CASES, STEPS

torch.distributed.is_available() or pytest.skip(
    "this torch has no torch.distributed", allow_module_level=True
)

FOR = {2: [name for name in CASES if name not in ("2d", "hybrid")], 4: ["ddp", "fsdp", "tp", "2d", "hybrid"]}


@cache
def alone(name: str) -> dict[str, Any]:
    """Returns what one process comes to that sees every batch whole."""
    case = replace(CASES[name], cut=None)
    if name == "fsdp, bf16":
        # Each rank rounds the gradient of its own half of the batch: so does whoever takes the halves in turn.
        case = replace(case, cut=lambda net: ranked.InHalf(*net), micro=2, data=lambda: (0, 1))
    made = ranked.make(case)
    ranked.train(case, made[0], made[1], 0, STEPS)
    return ranked.outcome(*made)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_come_to_what_one_process_comes_to(ranks: int) -> None:
    """One test for all cases, which are one launch."""
    found = results(launched(ranks, ranked.run_all, FOR[ranks]))[0]
    for name in FOR[ranks]:
        case, expected = found[name], alone(name)
        assert case["the same on all ranks"], name
        assert case["switch"] == expected["switch"], name
        assert case["d"] == expected["d"], name
        assert case["verified"], name
        assert case["masks are of the latent weights"], name
        if CASES[name].recipe is ranked.step_recipe:
            assert 10 < case["switch"][0] < 45, name
            assert case["switch"][1] == "threshold", name
        assert_same(case, expected, name)


def assert_same(found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    for key, mask in expected["masks"].items():
        assert torch.equal(found["masks"][key], mask), f"{name}: mask of {key}"
    for part in ("parameters", "pruned"):
        assert found[part].keys() == expected[part].keys(), name
        for key, value in expected[part].items():
            close = torch.allclose(found[part][key], value, rtol=2e-5, atol=2e-6)
            assert close, f"{name}: {part} of {key} off by {(found[part][key] - value).abs().max()}"
    assert found["z"] == pytest.approx(expected["z"], rel=1e-4), name
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4), name
    for own, other in zip(found["layers"], expected["layers"], strict=True):
        assert (own.pop("name"), own["flip_rate"] is None) == (other["name"], other["flip_rate"] is None), (
            name
        )
        for key, value in own.items():
            assert value is None or value == pytest.approx(other[key], rel=1e-4, abs=1e-6), f"{name}: {key}"


@pytest.mark.slow
def test_torchrun_launches_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = subprocess.run(
        [*command, ranked.__file__, str(tmp_path / "found.pt"), "fsdp, sr-ste"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    came = torch.load(tmp_path / "found.pt", weights_only=False)["fsdp, sr-ste"]
    for key, value in alone("fsdp, sr-ste")["masks"].items():
        assert torch.equal(came["masks"][key], value)
