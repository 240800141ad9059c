"""The long tests in short: a few of each, and proof that each of them can fail."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import nmstep
from nmstep.experiments import RunConfig, run
from soak.calls import TARGETS, contract, fuzz, masks, oracles
from soak.rows import Row, failed, table
from soak.runs import differences

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_few_of_each() -> None:
    """Kills, company and damage in a process of their own, since they fork."""
    command = [sys.executable, "-m", "soak", "--parts", "kills", "company", "damage"]
    done = subprocess.run(
        [*command, "--runs", "step", "--scale", "0.03"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| killed once, resumed | 3 | 3 | 0 |" in done.stdout


@pytest.mark.parametrize("target", TARGETS, ids=[name for name, *_ in TARGETS])
def test_a_few_calls(target: tuple[str, st.SearchStrategy[Any], Any, int]) -> None:
    name, cases, check, _ = target
    row = fuzz(name, cases, check, count=15, start=0)
    assert not row.failures
    assert row.tried >= 15


# -- the tests can fail -------------------------------------------------------------------------------


def test_a_wrong_answer_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    right = nmstep.nm_mask

    @functools.wraps(right)
    def wrong(*arguments: Any, **named: Any) -> torch.Tensor:
        return ~right(*arguments, **named)

    monkeypatch.setattr(nmstep, "nm_mask", wrong)
    row = fuzz("nm_mask", masks.mask_cases, masks.check_mask, count=50, start=0)
    assert "the oracle says" in row.failures[0]
    assert failed([row])


@pytest.mark.parametrize(
    ("error", "says"), [(KeyError("x"), "which is not documented"), (ValueError(""), "without a message")]
)
def test_an_exception_that_is_not_documented_is_found(error: Exception, says: str) -> None:
    def documents_little() -> None:
        """Raises something.

        Raises:
            ValueError: it is so.
        """
        raise error

    assert contract.documented(documents_little) == {"ValueError"}
    with pytest.raises(contract.WrongError, match=says):
        contract.call(documents_little)


@pytest.mark.parametrize(
    ("outcome", "expected", "says"),
    [
        (contract.Answer(3), None, "should have refused"),
        (contract.Refusal(ValueError("no")), 3, "should not have"),
        (contract.Answer(3), 4, "the oracle says 4"),
    ],
)
def test_what_an_oracle_contradicts_is_found(outcome: Any, expected: Any, says: str) -> None:
    with pytest.raises(contract.WrongError, match=says):
        contract.expect(outcome, expected, lambda ours, theirs: bool(ours == theirs))


def test_the_oracle_knows_ties_nan_and_short_groups() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.0, torch.nan, torch.inf, 2.0]])
    assert oracles.masked(weight, 1, 4, 1).tolist() == [[False, False, False, True, True, False]]
    assert oracles.masked(weight, 2, 2, 1).all()
    assert not oracles.complies(weight, 2, 4, 1)
    assert oracles.complies(weight, 3, 4, 1)


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Path]:
    """Returns two run folders that are the same."""
    config = RunConfig(
        recipe="sr-ste", pattern="1:16", exclude=("conv1",), steps=4, checkpoint_every=2, threads=1
    )
    run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "same")
    return tmp_path / "same", tmp_path / "whole"


def test_a_run_that_differs_in_one_bit_is_found(finished: tuple[Path, Path]) -> None:
    same, whole = finished
    assert differences(same, whole) == []
    latest = same / "checkpoint-4.pt"
    state = torch.load(latest, weights_only=True)
    name = next(iter(state["training"]["model"]))
    state["training"]["model"][name].view(-1)[0] *= -1
    torch.save(state, latest)
    assert differences(same, whole) == [f"checkpoint: .training.model.{name} differs"]
    with (same / "metrics.jsonl").open("a") as file:
        file.write("\n")
    (same / ".model.safetensors.tmp").touch()
    assert {"metrics.jsonl differs", ".model.safetensors.tmp was left behind"} <= {*differences(same, whole)}


def test_nothing_tried_is_no_success() -> None:
    assert failed([Row("nothing")])
    assert not failed([Row("something", tried=1), Row("without the right to", skipped="no mount")])
    assert table([Row("x", skipped="no mount")]).endswith("x: not tried, no mount")
    assert "| nothing | 0 | 0 | 0 | 0.0 |" in table([Row("nothing")])
