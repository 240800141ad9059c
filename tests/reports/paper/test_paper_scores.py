"""Tables of scores and gaps, against hand computation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nmstep.reports.paper import study_rows, write_study
from nmstep.reports.paper.estimates import difference, estimate

Make = Callable[..., Any]


def tables(folder: Path) -> dict[str, dict[tuple[str, ...], list[str]]]:
    """The tables by title, their rows by where and what they are about."""
    found = {}
    for title, columns, rows in study_rows(folder):
        keys = 2 if columns[1:2] in (["row"], ["difference"]) else 1
        found[title] = {tuple(row[:keys]): row[keys:] for row in rows}
    return found


def record(folder: Path) -> dict[str, Any]:
    write_study(folder)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def four_recipes(study: Any) -> None:
    study.cell("dense", "dense", [90.0, 91.0, 92.0], losses=[0.1, 0.1, 0.1])
    study.cell("ASP", "asp", [70.0, 71.0, 72.0], losses=[0.9, 0.9, 0.9], switch=50, reason="scheduled")
    study.cell("SR-STE", "sr-ste", [80.0, 81.0, 82.0], losses=[0.5, 0.5, 0.5], switch=0, reason="scheduled")
    study.cell("STEP", "step", [87.0, 86.0, 88.0], losses=[0.2, 0.2, 0.2], switch=20, reason="t_max")


def test_means_and_sample_deviations(make: Make) -> None:
    study = make()
    four_recipes(study)
    found = tables(study.save())
    accuracy = found["Final held-out accuracy (%): mean ± sample standard deviation"]
    assert accuracy["Digits, 1:8",] == ["91.00 ± 1.00", "71.00 ± 1.00", "81.00 ± 1.00", "87.00 ± 1.00"]
    loss = found["Final held-out loss: mean ± sample standard deviation"]
    assert loss["Digits, 1:8",][3] == "0.2000 ± 0.0000"


def test_the_gap_and_what_is_closed_of_it(make: Make) -> None:
    study = make()
    four_recipes(study)
    gap, closed, gain, order = tables(study.save())["What STEP closes of SR-STE's gap to dense"][
        "Digits, 1:8",
    ]
    assert (gap, closed, order) == ("+10.00", "60 %", "yes")
    # Differences 7, 5, 6: mean 6, std 1, t(0.975, 2) = 4.302653; 4.302653 / sqrt(3) = 2.4841.
    assert gain == "+6.00 ± 2.48 *"


def test_where_lower_is_better(make: Make) -> None:
    study = make()
    for row, recipe, values in (
        ("dense", "dense", [20.0, 22.0]),
        ("SR-STE", "sr-ste", [40.0, 42.0]),
        ("STEP", "step", [25.0, 27.0]),
    ):
        study.cell(row, recipe, values, metric="perplexity", task="wikitext-2")
    folder = study.save()
    gap, closed, gain, order = tables(folder)["What STEP closes of SR-STE's gap to dense"]["Digits, 1:8",]
    assert (gap, closed, order) == ("+20.00", "75 %", "yes")
    assert gain == "−15.00 ± 0.00 *"
    assert record(folder)["verdict"]["held"] == "held"


def test_no_gap_leaves_no_share_and_the_order_is_told(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0, 90.0])
    study.cell("SR-STE", "sr-ste", [91.0, 91.0])
    study.cell("STEP", "step", [90.0, 90.0])
    gap, closed, _, order = tables(study.save())["What STEP closes of SR-STE's gap to dense"]["Digits, 1:8",]
    assert (gap, closed, order) == ("−1.00", "–", "no: SR-STE > dense = STEP")


def test_a_gap_within_the_noise_is_marked_and_decides_nothing(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0, 94.0])
    study.cell("SR-STE", "sr-ste", [89.0, 93.0])
    study.cell("STEP", "step", [89.5, 93.6])
    folder = study.save()
    closed = tables(folder)["What STEP closes of SR-STE's gap to dense"]["Digits, 1:8",][1]
    assert closed == "55 % (noise)"
    found = record(folder)
    assert found["mean_closed"] is None


def test_a_column_in_which_nothing_can_be_won_leaves_the_claim_half_seen(make: Make) -> None:
    study = make()
    four_recipes(study)
    study.cell("dense", "dense", [90.0, 94.0], column="Digits, 2:4")
    study.cell("SR-STE", "sr-ste", [90.1, 94.2], column="Digits, 2:4")
    study.cell("STEP", "step", [90.0, 94.3], column="Digits, 2:4")
    assert record(study.save())["verdict"]["held"] == "in part"


def test_the_verdict_counts_comparisons(make: Make) -> None:
    study = make(closed=0.89)
    four_recipes(study)
    study.cell("dense", "dense", [90.0, 91.0, 92.0], column="Digits, 2:4")
    study.cell("SR-STE", "sr-ste", [80.0, 81.0, 82.0], column="Digits, 2:4")
    study.cell("STEP", "step", [76.0, 76.0, 76.0], column="Digits, 2:4")
    found = record(study.save())
    why = found["verdict"]["why"]
    assert found["verdict"]["held"] == "in part"
    assert "in 1 of 2 comparisons, in 1 of them beyond the 95 % interval" in why
    assert "; in 1 it is worse beyond it." in why
    # 60 % and −50 %.
    assert "It closes 5 % of SR-STE's gap to dense on average over the 2 comparisons" in why
    assert "(the paper: 89 %)" in why
    assert found["mean_closed"] == {"share": pytest.approx(0.05), "comparisons": 2}


def test_the_papers_share_by_task(make: Make) -> None:
    study = make(closed={"digits": 0.63, "wikitext-103": 0.81})
    four_recipes(study)
    why = record(study.save())["verdict"]["why"]
    assert "(the paper: 63 % on digits)" in why


def test_dense_of_a_workload_serves_all_of_its_columns(make: Make) -> None:
    study = make("table4")
    study.cell("dense", "dense", [90.0, 92.0], column="Digits")
    study.cell("DominoSearch", "sr-ste", [80.0, 82.0], column="Digits, mixed N:8")
    study.cell("DominoSearch + STEP", "step", [85.0, 87.0], column="Digits, mixed N:8")
    found = tables(study.save())["What DominoSearch + STEP closes of DominoSearch's gap to dense"]
    assert found == {("Digits, mixed N:8",): ["+10.00", "50 %", "+5.00 ± 0.00 *", "yes"]}


def test_unfinished_and_missing_runs_are_counted(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0, None], planned=3)
    study.cell("STEP", "step", [], planned=3)
    folder = study.save()
    page = write_study(folder).read_text(encoding="utf-8")
    assert "**5 of 6 runs are missing or not finished.**" in page
    assert "| Digits, 1:8 | 90.00 (1 of 3) | – |" in page
    assert "| Digits, 1:8 | STEP | 0 of 3 | – | – | – |" in page
    assert "So far: **The claim is open.**" in page


def test_medians(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [1.0, 2.0, 9.0], summary="median")
    found = tables(study.save())["Final held-out accuracy (%): median [least, most]"]
    assert found["Digits, 1:8",] == ["2.00 [1.00, 9.00]"]


def test_where_masks_start_and_what_a_run_takes(make: Make) -> None:
    study = make()
    four_recipes(study)
    runs = tables(study.save())["Runs"]
    assert runs["Digits, 1:8", "STEP"] == ["3 of 3", "20.0 % (latest step allowed)", "12", "302"]
    assert runs["Digits, 1:8", "SR-STE"][1] == "from the start"
    assert runs["Digits, 1:8", "ASP"][1] == "50.0 %"
    assert runs["Digits, 1:8", "dense"][1] == "–"


def test_the_papers_values_where_known(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0, 92.0], paper=93.5)
    folder = study.save()
    found = tables(folder)["Beside the paper's values"]
    assert found == {("Digits, 1:8 (accuracy (%))", "dense"): ["91.00 ± 1.41", "93.50", "−2.50"]}
    assert "not at hand" not in write_study(folder).read_text(encoding="utf-8")


def test_columns_with_different_metrics_name_them(make: Make) -> None:
    study = make("table2")
    study.cell("dense", "dense", [90.0], column="RTE, 2:4")
    study.cell("dense", "dense", [50.0], column="CoLA, 2:4", metric="matthews")
    titles = tables(study.save())
    found = titles["Final held-out metric: mean ± sample standard deviation"]
    assert list(found) == [("RTE, 2:4 (accuracy (%))",), ("CoLA, 2:4 (Matthews × 100)",)]


def test_a_diverged_run_is_not_averaged_away(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0, 90.0])
    study.cell("SR-STE", "sr-ste", [80.0, math.nan])
    study.cell("STEP", "step", [85.0, 85.0])
    folder = study.save()
    assert tables(folder)["Final held-out accuracy (%): mean ± sample standard deviation"]["Digits, 1:8",][
        1
    ] == ("not finite")
    found = record(folder)
    assert found["scores"][1]["final"]["seeds"] == {"0": 80.0, "1": "nan"}
    assert found["gaps"][0]["step_minus_sr_ste"] is None


def test_pairs_and_verdicts_of_the_other_claims(make: Make) -> None:
    frozen = make("fig8")
    frozen.cell("STEP, variance updated", "step-updated", [80.0, 81.0])
    frozen.cell("STEP", "step", [85.0, 86.0])
    assert "in 1 of 1 comparison, in 1 of them beyond" in record(frozen.save())["verdict"]["why"]
    optimizers = make("fig1")
    for optimizer, srste in (("momentum SGD", 89.0), ("Adam", 80.0)):
        column = f"Pictures, {optimizer}"
        optimizers.cell("dense", "dense", [90.0, 90.0], column=column)
        optimizers.cell("SR-STE", "sr-ste", [srste, srste], column=column)
    found = record(optimizers.save())
    assert found["verdict"] == {
        "held": "held",
        "why": "Pictures: SR-STE is behind dense by +1.00 under momentum SGD and by +10.00 under Adam.",
    }
    assert [pair["difference"]["mean"] for pair in found["pairs"]] == [1.0, 10.0]


def test_difference_over_common_seeds_only() -> None:
    found = difference({0: 5.0, 1: 7.0, 2: 100.0}, {0: 4.0, 1: 4.0})
    assert found is not None
    # Differences 1 and 3: std sqrt(2), t(0.975, 1) = 12.7062.
    assert (found.mean, found.n) == (2.0, 2)
    assert found.half_width == pytest.approx(12.7062, abs=1e-4)
    assert not found.significant
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_no_spread() -> None:
    found = estimate({3: 1.5}, planned=2)
    assert found is not None
    assert (found.center, found.std, found.n) == (1.5, None, 1)
    assert estimate({}, planned=2) is None


def test_a_run_that_ends_at_no_finite_number_is_told(make: Make) -> None:
    study = make()
    study.cell("SR-STE", "sr-ste", [30.0, 31.0], metric="perplexity")
    study.cell("STEP", "step", [28.0, math.inf], metric="perplexity")
    page = write_study(study.save()).read_text(encoding="utf-8")
    assert "A run of STEP or SR-STE ended at no finite number on Digits, 1:8" in page


def test_the_papers_switch_stands_beside_that_of_cifar(make: Make) -> None:
    study = make()
    study.cell("STEP", "step", [87.0], switch=20, reason="threshold", task="cifar10")
    study.cell("STEP", "step", [87.0], switch=20, reason="threshold", column="Digits")
    assert "the paper's AutoSwitch fires at about 20 %" in write_study(study.save()).read_text(
        encoding="utf-8"
    )
    study.values["cells"].pop(0)
    assert "the paper's AutoSwitch" not in write_study(study.save()).read_text(encoding="utf-8")


def test_seconds_are_of_the_clock_on_a_gpu(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0])
    study.cell("STEP", "step", [87.0], settings={"device": "cuda"})
    rows = tables(study.save())["Runs"]
    assert [rows["Digits, 1:8", row][2] for row in ("dense", "STEP")] == ["12", "20 (GPU)"]
