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

FOR_TWO = [name for name in CASES if name != "2d"]
FOR_FOUR = ["ddp", "fsdp", "tp", "2d"]
BOTH = [(2, name) for name in FOR_TWO] + [(4, name) for name in FOR_FOUR]


@pytest.fixture(scope="module")
def runs() -> Any:
    """Returns what a case came to on so many ranks; one launch runs all cases of a number."""

    @cache
    def launch(ranks: int) -> list[dict[str, Any]]:
        return results(launched(ranks, ranked.run_all, FOR_TWO if ranks == 2 else FOR_FOUR))

    return lambda ranks, name: launch(ranks)[0][name]


@cache
def alone(name: str) -> dict[str, Any]:
    """Returns what one process comes to that sees every batch whole."""
    case = replace(CASES[name], cut=None)
    made = ranked.make(case)
    ranked.train(case, made[0], made[1], 0, STEPS)
    return ranked.outcome(*made)


@pytest.mark.parametrize(("ranks", "name"), BOTH)
def test_ranks_come_to_what_one_process_comes_to(runs: Any, ranks: int, name: str) -> None:
    found, expected = runs(ranks, name), alone(name)
    assert found["the same on all ranks"]
    assert found["switch"] == expected["switch"]
    assert found["verified"]
    assert found["d"] == expected["d"]
    if name == "fsdp, bf16":
        return  # its gradients are rounded otherwise; see below
    for key in expected["masks"]:
        assert torch.equal(found["masks"][key], expected["masks"][key]), key
    for part in ("parameters", "pruned"):
        assert found[part].keys() == expected[part].keys()
        for key, value in expected[part].items():
            torch.testing.assert_close(
                found[part][key], value, rtol=2e-5, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}"
            )
    assert found["z"] == pytest.approx(expected["z"], rel=1e-4)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)


@pytest.mark.parametrize(("ranks", "name"), BOTH)
def test_the_switch_came_by_its_rule_in_the_middle(runs: Any, ranks: int, name: str) -> None:
    step, reason = runs(ranks, name)["switch"]
    if CASES[name].recipe is ranked.step_recipe:
        assert reason == "threshold"
        assert 10 < step < 45


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
