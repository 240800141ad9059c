"""The numbers in the tables, against hand computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from nmstep.reports import gap_table, load_runs, summary_table

Write = Callable[..., Path]


def test_mean_and_sample_deviation_by_hand(write: Write) -> None:
    for seed, (value, loss) in enumerate([(96.0, 0.1), (97.0, 0.2), (99.0, 0.6)]):
        folder = write("step", "1:16", seed, value, loss=loss)
    (row,) = summary_table(folder.parent)
    assert (row["n"], row["seeds"], row["values"]) == (3, [0, 1, 2], [96.0, 97.0, 99.0])
    assert row["mean"] == pytest.approx(292 / 3)
    # Squared distances from 97 1/3: (16 + 1 + 25) / 9 = 14 / 3, over n - 1 = 2.
    assert row["std"] == pytest.approx(math.sqrt(7 / 3))
    assert row["loss_mean"] == pytest.approx(0.3)
    assert row["loss_std"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert (row["switch_step_mean"], row["switch_reasons"]) == (40.0, {"t_max": 3})
    assert (row["verified"], row["density"], row["metric"]) == (True, 0.27, "accuracy")


def test_dense_comes_first_then_dense_to_sparse_then_recipes(comparison: Path) -> None:
    rows = summary_table(comparison)
    assert [(row["recipe"], row["pattern"]) for row in rows] == [
        ("dense", None),
        ("asp", "1:4"),
        ("sr-ste", "1:4"),
        ("step", "1:4"),
        ("asp", "1:16"),
        ("sr-ste", "1:16"),
        ("step", "1:16"),
    ]
    assert rows == summary_table(load_runs(comparison))


def test_one_seed_has_no_deviation_and_dense_no_switch(write: Write) -> None:
    (row,) = summary_table(write("dense", None, 0, 98.0))
    assert (row["std"], row["loss_std"], row["switch_step_mean"], row["verified"]) == (None, None, None, None)


def test_unfinished_runs_do_not_count(write: Write) -> None:
    write("asp", "1:4", 0, 90.0)
    folder = write("asp", "1:4", 1, 50.0, finished=False)
    write("ste", "1:4", 0, 50.0, finished=False)
    (row,) = summary_table(folder.parent)
    assert row["values"] == [90.0]


def test_one_run_that_is_not_sparse_fails_the_row(write: Write) -> None:
    write("asp", "1:4", 0, 90.0)
    folder = write("asp", "1:4", 1, 90.0, verified=False)
    assert summary_table(folder.parent)[0]["verified"] is False


def test_an_unchecked_run_leaves_the_row_unverified(write: Write) -> None:
    write("asp", "1:4", 0, 90.0)
    folder = write("asp", "1:4", 1, 90.0, verified=None)
    assert summary_table(folder.parent)[0]["verified"] is None


def test_a_diverged_run_is_not_averaged_away(write: Write) -> None:
    write("asp", "1:4", 0, 90.0)
    folder = write("asp", "1:4", 1, 10.0, loss=math.nan)
    (row,) = summary_table(folder.parent)
    assert math.isnan(row["loss_mean"])
    assert row["mean"] == 50.0


def test_runs_with_other_settings_get_rows_of_their_own(write: Write) -> None:
    write("asp", "1:4", 0, 90.0, lr=0.1)
    write("asp", "1:4", 0, 80.0, options={"start": 5})
    folder = write("asp", "1:4", 1, 80.0, threads=8)
    rows = summary_table(folder.parent)
    assert {row["variant"]: row["n"] for row in rows} == {
        "lr=0.001, start=5": 1,
        "lr=0.001, start=None": 1,
        "lr=0.1, start=None": 1,
    }


def test_the_share_of_the_gap_that_step_closes(comparison: Path) -> None:
    gaps = gap_table(summary_table(comparison))
    assert [gap["pattern"] for gap in gaps] == ["1:4", "1:16"]
    # Means: dense 98.5, SR-STE 96.5, STEP 98; losses 0.11 and 0.06.
    assert gaps[0]["gap"] == pytest.approx(2.0)
    assert gaps[0]["closed"] == pytest.approx(0.75)
    assert gaps[0]["loss_lower"] is True
    assert gaps[0]["noisy"] is False  # 2.0 against a deviation of 0.71


def test_the_gap_where_lower_is_better(write: Write) -> None:
    for recipe, pattern, value in (("dense", None, 10.0), ("sr-ste", "2:4", 14.0), ("step", "2:4", 15.0)):
        folder = write(recipe, pattern, 0, value, metric="perplexity")
    (gap,) = gap_table(summary_table(folder.parent))
    assert (gap["gap"], gap["closed"], gap["loss_lower"]) == (4.0, -0.25, False)


def test_no_gap_no_share(write: Write) -> None:
    for recipe, pattern, value in (("dense", None, 96.0), ("sr-ste", "2:4", 97.0), ("step", "2:4", 98.0)):
        folder = write(recipe, pattern, 0, value)
    (gap,) = gap_table(summary_table(folder.parent))
    assert (gap["gap"], gap["closed"]) == (-1.0, None)
