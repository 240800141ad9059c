"""Checkpoints of torch.distributed move between numbers of ranks, and the run goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import moved
import pytest
import torch
from launch import launched, results
from test_distributed import alone

# Ranks of each stretch and the steps at its end: the masks start at about step 23.
STRETCHES = [(1, 10), (2, 20), (4, 35), (2, 50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("moved")
    first = 0
    for ranks, last in STRETCHES:
        results(launched(ranks, moved.stretch, found, first, last))
        first = last
    return found


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_a_run_moves_from_1_to_2_to_4_to_2_ranks(folder: Path, form: str) -> None:
    found: dict[str, Any] = torch.load(folder / f"{form} 50.pt", weights_only=False)
    expected = alone("fsdp")
    assert found["switch"] == expected["switch"]
    assert found["verified"]
    for key in expected["masks"]:
        assert torch.equal(found["masks"][key], expected["masks"][key]), key
    for part in ("parameters", "pruned"):
        for key, value in expected[part].items():
            torch.testing.assert_close(found[part][key], value, rtol=2e-5, atol=2e-6)
