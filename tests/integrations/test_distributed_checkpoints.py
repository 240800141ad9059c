"""Checkpoints of torch.distributed move between numbers of ranks, and the run goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import moved
import pytest
import torch
import torch.distributed.checkpoint as dcp
from launch import launched, results
from test_distributed import alone
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict

import nmstep
import tiny

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


@pytest.mark.parametrize("form", moved.FORMS)
@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_a_frozen_first_parameter_does_not_keep_a_run_from_being_resumed(tmp_path: Path, form: str) -> None:
    """torch loads no state of parameters that do not train."""

    def made() -> tuple[nn.Module, nmstep.AdamW, nmstep.Sparsifier]:
        model = tiny.net()
        for p in model[0].parameters():
            p.requires_grad_(False)
        optimizer = nmstep.AdamW(model.parameters())
        plan = nmstep.plan(model, "2:4", exclude=["0"])
        return model, optimizer, nmstep.sparsify(model, optimizer, nmstep.SRSTE(plan))

    model, optimizer, _ = made()
    tiny.steps(model, optimizer, 3)
    weights, state = get_state_dict(model, optimizer, options=moved.FORMS[form])
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path, no_dist=True)
    resumed = made()
    moved.load(tmp_path, form, resumed[0], resumed[1])
    assert resumed[2].step == 3
    for each in (model, optimizer), resumed[:2]:
        tiny.steps(*each, 2, first=3)
    for p, q in zip(model.parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(p, q)
