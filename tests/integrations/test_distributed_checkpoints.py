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


@pytest.mark.slow
def test_a_run_moves_from_1_to_2_to_4_to_2_ranks(tmp_path: Path) -> None:
    first = 0
    for ranks, last in STRETCHES:
        results(launched(ranks, moved.stretch, tmp_path, first, last))
        first = last
    expected = alone("fsdp")
    for form in moved.FORMS:
        found: dict[str, Any] = torch.load(tmp_path / f"{form} {first}.pt", weights_only=False)
        assert found["switch"] == expected["switch"], form
        assert found["verified"], form
        for key, mask in expected["masks"].items():
            assert torch.equal(found["masks"][key], mask), f"{form}: {key}"
        for part in ("parameters", "pruned"):
            for key, value in expected[part].items():
                torch.testing.assert_close(found[part][key], value, rtol=2e-5, atol=2e-6)
