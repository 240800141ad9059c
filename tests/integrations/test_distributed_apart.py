"""What one rank alone runs into: all of them are told, or the others end with it."""

from __future__ import annotations

import re
from typing import Any

import apart
import pytest
from launch import launched, results


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return results(launched(2, apart.everything))


ALIKE = {
    "other_rate": r"lr of group 0 is 0\.01 on rank 0 and 0\.02 on rank 1\. Give",
    "other_settings": (
        r"amsgrad of group 0 is False on rank 0 and True on rank 1; betas of group 0 is \(0\.9, 0\.999\) on rank 0 "
        r"and \(0\.9, 0\.98\) on rank 1; eps of group 0 is 1e-08 .* 1e-06 on rank 1; weight_decay of group 0 is"
    ),
    "other_groups": (
        r"same way: params of group 0 is 6 of them on rank 0 and 5 of them on rank 1; the number of parameter "
        r"groups is 1 on rank 0 and 2 on rank 1; "
    ),
    "rate_set_later": r"lr of group 0 is 0\.001 on rank 0 and 0\.0005 on rank 1",
    "bad_state": r"ValueError: on rank 1: this optimizer is a copy of a sparsified one",
    "state_on_one_rank": r"the step that the optimizer's state is of is None on rank 0 and 1 on rank 1",
    "written_before_a_sample": r"ValueError: on rank 1: '2\.weight' was written to since the last step",
    "zero_redundancy": r"ValueError: ZeroRedundancyOptimizer saves the state of an optimizer inside it",
}


@pytest.mark.parametrize("case", ALIKE)
def test_every_rank_is_told_the_same(found: list[dict[str, Any]], case: str) -> None:
    assert re.search(ALIKE[case], found[0][case]), found[0][case]
    assert found[1][case] == found[0][case]


@pytest.mark.parametrize("case", ["no_group", "small_group", "cut_later"])
def test_a_group_must_hold_the_whole_model(found: list[dict[str, Any]], case: str) -> None:
    for rank, told in enumerate(found):
        assert re.match(
            rf"ValueError: a parameter of shape \(32, 16\) is cut over the ranks \[0, 1\], but process_group is of "
            rf"the ranks \[{rank}\] alone: .* group of all ranks that hold the model, or leave it at 'world'",
            told[case],
        ), told[case]


def test_a_mesh_of_one_rank_needs_no_group(found: list[dict[str, Any]]) -> None:
    assert [told["mesh_of_one"] for told in found] == [1, 1]


@pytest.mark.parametrize("case", ["no_room_at_once", "no_room_at_the_switch"])
def test_masks_start_on_all_ranks_or_on_none(found: list[dict[str, Any]], case: str) -> None:
    assert [told[case] for told in found] == [("MemoryError: on rank 1: no room", True)] * 2


def test_a_checkpoint_that_one_rank_cannot_see(found: list[dict[str, Any]]) -> None:
    for told in found:
        error, untouched = told["checkpoint_unseen"]
        assert re.match(r"FileNotFoundError: on rank 1: no distributed checkpoint in .*elsewhere", error), (
            error
        )
        assert untouched


def test_ignored_gradients_are_counted_alike(found: list[dict[str, Any]]) -> None:
    steps, skipped, switch, _ = found[0]["nonfinite_ignored"]
    assert (steps, skipped) == (8, 0)
    assert switch is not None
    assert found[1]["nonfinite_ignored"][:3] == (steps, skipped, switch)
    assert [told["nonfinite_ignored"][3] for told in found] == [
        False,
        True,
    ]  # only its own weights are broken


def test_a_scaler_leaves_a_step_out_on_all_ranks(found: list[dict[str, Any]]) -> None:
    """In each mode: the call changed no weight, and was no step; the one before and the one after were."""
    assert [told["left_out_by_a_scaler"] for told in found] == [[(2, True)] * 3] * 2


def test_a_rank_that_ends_with_an_error_takes_the_others_with_it() -> None:
    waiting, ended = launched(2, apart.written_between, timeout=60)
    assert ended[0] == "raised"
    assert "ValueError: '2.weight' was written to since the last step" in ended[1]
    assert "No word of this went to other ranks: those that" in ended[1]
    kind, (error, seconds) = waiting
    assert kind == "done"
    assert error
    assert seconds < 30  # at once, rather than after the group's timeout
