"""What cannot work is told before training, on every rank alike; what breaks ends every rank, and none hangs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import refused
from launch import launched, results


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results(launched(2, refused.everything, tmp_path_factory.mktemp("refused")))


SAME = {
    "other_pattern": (
        r"ValueError: the 2 ranks do not train the same way: the pattern of '0.weight' is 2:4 of shape \(32, 16\) "
        r"on rank 0 and 1:4 of shape \(32, 16\) on rank 1; .*Give all of them the same"
    ),
    "other_steps": r"ValueError: .* the recipe's total_steps is 100 on rank 0 and 101 on rank 1\. Give",
    "other_model": r"ValueError: on rank 1: no parameter of this Sequential can become sparse",
    "split_groups": (
        r"ValueError: cannot keep groups of 4 of '1.weight' with shape \(8, 20\) whole: its dimension 1, which "
        r"they run along, is cut into 2 shards of 10 elements, and 10 is no multiple of 4. Make the dimension a "
        r"multiple of 8 \(2 shards x 4\), .*exclude=\['1'\]"
    ),
    "flat_fsdp": r"ValueError: FullyShardedDataParallel .* torch.distributed.fsdp.fully_shard",
    "bad_gradient": r"FloatingPointError: on rank 1: NaN or infinite gradient at optimizer step 2 in '2.weight'",
    "foreign_write": r"ValueError: on rank 1: '2.weight' was written to since the last step",
    "seeded_apart": r"ValueError: on rank 1: '0.weight' was written to since the last step",
    "cast_apart": r"ValueError: .*the step is 0 on rank 0 and 1 on rank 1",
    "wrong_group": r"ValueError: process_group='all': expected 'world', a process group",
    "a_sum_to_be": r"ValueError: 'fc.weight' is a Partial DTensor, .*redistribute it",
    "unprepared": r"Size mismatch .*nmstep|Missing key",
}


@pytest.mark.parametrize("case", SAME)
def test_every_rank_is_told_the_same(told: list[dict[str, Any]], case: str) -> None:
    assert re.search(SAME[case], told[0][case], re.DOTALL), told[0][case]
    assert told[1][case] == told[0][case] or case == "unprepared"


@pytest.mark.parametrize(
    ("case", "expected"),
    {
        "stepped": r"RuntimeError: this sparsifier has taken 1 steps; load into a fresh",
        "no sparsifier": r"ValueError: this AdamW has no sparsifier: call nmstep.sparsify first",
        "dense": r"ValueError: the checkpoint holds no record of a sparsifier",
        "other recipe": r"ValueError: the loaded optimizer state belongs to another .*2:4 .* there, 1:4 .* here",
        "not loaded": r"RuntimeError: .*prepared to load a checkpoint, and has not loaded one",
    }.items(),
)
def test_checkpoints_that_do_not_fit(told: list[dict[str, Any]], case: str, expected: str) -> None:
    for rank in told:
        assert re.search(expected, rank["checkpoints"][case]), rank["checkpoints"][case]


def test_what_is_no_hindrance(told: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(told):
        assert rank["uneven_shards"]
        assert rank["replaced"]
        assert rank["writes_counted"]
        assert rank["skipped_gradient"] == (1, 1)
        assert rank["own_model"] == 2 + number
        assert rank["idle"] == (0, None)


def test_when_a_rank_dies_the_others_end() -> None:
    found = launched(2, refused.a_rank_dies, timeout=15)
    assert found[1] == ("died", -9)
    kind, (error, seconds) = found[0]
    assert kind == "done"
    assert error
    assert seconds < 60


def test_when_a_rank_stays_away_the_others_end() -> None:
    found = launched(2, refused.a_rank_stays_away, timeout=5)
    error, seconds = found[0][1]
    assert re.search(r"timed out|Timed out|timeout", error, re.IGNORECASE), error
    assert seconds < 12
