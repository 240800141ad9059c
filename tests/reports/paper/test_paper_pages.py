"""The page, the record and the figures of every view."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nmstep.reports.paper import study_rows, write_study

Make = Callable[..., Any]
PNG = b"\x89PNG\r\n"


def evaluations(level: float) -> Callable[[int], list[dict[str, Any]]]:
    return lambda seed: [
        {"kind": "eval", "step": step, "phase": "dense", "loss": 1.0, "accuracy": level + step / 10 + seed,
         "masked": None}
        for step in (50, 100)
    ]  # fmt: skip


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_page_of_curves(make: Make) -> None:
    study = make("fig4", "curves")
    study.cell("dense", "dense", [90.0, 91.0], lines=evaluations(80.0))
    study.cell("SR-STE", "sr-ste", [80.0, 81.0], lines=evaluations(70.0), switch=0)
    study.cell("STEP", "step", [87.0, 86.0], lines=evaluations(75.0), switch=20)
    folder = study.save()
    page = write_study(folder)
    text = page.read_text(encoding="utf-8")
    assert page == folder / "index.md"
    assert text.startswith("# fig4: A title\n\nThe paper: STEP is better.\n\n**The claim held")
    assert "- A note.\n" in text
    for file in ("curves.png", "distances.png"):
        assert f"]({file})" in text
        assert (folder / file).read_bytes().startswith(PNG)
    assert record(folder)["runs"] == {"planned": 6, "done": 6}


def test_how_it_was_run(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0], settings={"task_options": {"model": "small"}})
    study.cell(
        "STEP", "step", [90.0], settings={"lr": 0.1, "options": {"window": 50}, "include": ["stages.*"]}
    )
    page = write_study(study.save()).read_text(encoding="utf-8")
    assert "- command: `nmstep reproduce fig4 --seeds 0 1 2`\n" in page
    assert "- commit: 0123456789\n" in page
    assert "- hardware: Some CPU, 1 thread, torch 2.13.0, Python 3.11.2\n" in page
    assert "digits (model small); data pictures; 100 steps of 32;" in page
    assert "lr 0.001 or 0.1" in page
    assert "masks on stages.*" in page
    assert "- recipes: STEP: window 50" in page
    assert "/somewhere" not in page


def test_places_that_differ_are_all_listed(make: Make) -> None:
    study = make()
    study.cell("dense", "dense", [90.0, 90.0])
    folder = study.save()
    second = study.store / "Digits_1x8-dense-s1" / "environment.json"
    second.write_text(json.dumps({"cpu": "Other CPU", "threads": 2, "commit": "fedcba9876543210+"}))
    page = write_study(folder).read_text(encoding="utf-8")
    assert (
        "- hardware:\n  - Some CPU, 1 thread, torch 2.13.0, Python 3.11.2\n  - Other CPU, 2 threads\n" in page
    )
    assert "  - fedcba9876 and changes not committed\n" in page


def test_writing_twice_gives_the_same_bytes(make: Make) -> None:
    study = make("fig4", "curves")
    study.cell("dense", "dense", [90.0, 91.0], lines=evaluations(80.0))
    study.cell("STEP", "step", [87.0, 86.0], lines=evaluations(75.0), switch=20)
    folder = study.save()
    write_study(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_study(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert set(first) == {"study.json", "index.md", "results.json", "curves.png", "distances.png"}


def test_a_study_without_any_run(make: Make) -> None:
    for view in ("scores", "curves", "variance", "criteria", "shares"):
        study = make(view, view)
        study.cell("dense", "dense", [], planned=2)
        study.cell("STEP", "step", [], planned=2)
        folder = study.save()
        page = write_study(folder).read_text(encoding="utf-8")
        assert "**4 of 4 runs are missing or not finished.**" in page
        assert "The claim is open." in page
        assert not list(folder.glob("*.png"))


def test_a_figure_of_an_earlier_state_goes(make: Make) -> None:
    study = make("fig4", "curves")
    study.cell("dense", "dense", [], planned=1)
    folder = study.save()
    (folder / "curves.png").write_bytes(b"old")
    write_study(folder)
    assert not (folder / "curves.png").exists()


def variance_lines(seed: int) -> list[dict[str, Any]]:
    """Z falls as 1/t², by 2 coordinates; ‖v‖₁ of the first step is 2 Z_1."""
    return [
        {"kind": "step", "step": t, "z": 4.0 ** (seed % 2) / t**2, "v_norm1": 2.0 * 4.0 ** (seed % 2) * t,
         "v_norm2": float(t), "z_mean": None, "threshold": None}
        for t in range(1, 101)
    ]  # fmt: skip


def test_variance_at_shares_of_the_steps(make: Make) -> None:
    study = make("fig3", "variance", column="z")
    study.cell("dense", "dense", [90.0, 90.0], column="Digits", lines=variance_lines)
    folder = study.save()
    write_study(folder)
    title, columns, rows = study_rows(folder)[0]
    assert columns == ["where", "row", "at 1 %", "at 10 %", "at 20 %", "at 50 %", "at 100 %", "seeds"]
    assert "Z_t" in title
    # Geometric mean of 1 and 4 is 2.
    assert rows == [["Digits", "dense", "2.00", "0.0200", "0.00500", "8.00e−4", "2.00e−4", "2 of 2"]]
    assert (folder / "variance.png").read_bytes().startswith(PNG)
    assert record(folder)["verdict"]["held"] == "held"


def test_variance_under_masks_beside_dense(make: Make) -> None:
    study = make("fig2", "variance", column="v_norm1")
    study.cell("dense", "dense", [90.0, 90.0], column="Digits", lines=variance_lines)
    lines = [{**line, "v_norm1": 3.0 * line["v_norm1"]} for line in variance_lines(0)]
    later = [{**line, "v_norm1": 3.0 * line["v_norm1"]} for line in variance_lines(1)]
    study.cell("SR-STE 2:4", "sr-ste", [90.0, 90.0], column="Digits", lines=lambda seed: (lines, later)[seed])
    folder = study.save()
    write_study(folder)
    verdict = record(folder)["verdict"]
    assert verdict["held"] == "held"
    assert "3.00 times (SR-STE 2:4) that of dense" in verdict["why"]


def test_criteria_on_a_recorded_run(make: Make) -> None:
    study = make("table1", "criteria")
    study.cell("dense", "dense", [90.0], column="Digits", lines=variance_lines)
    folder = study.save()
    write_study(folder)
    title, columns, rows = study_rows(folder)[0]
    assert title == "Digits: 100 steps, 2 coordinates"
    assert columns == ["criterion", "t0", "of the steps", "change of v after", "why"]
    found = {row[0]: row[1:] for row in rows}
    # ‖v‖₂ = t changes by 1 / (t − 1): below 0.5 first at t = 4. After it, 2 coordinates
    # times the mean of 1/t² for t = 5 … 100, which is 0.21137 / 96.
    assert found["relative norm (Eq. 10)"] == ["4", "4.0 %", "0.00440", "norm change below bound"]
    # The window of 1,000 never fills: the first step after half of the run decides, or nothing does.
    assert found["AutoSwitch"][:2] == ["51", "51.0 %"]
    assert found["AutoSwitch, not clipped"] == ["never", "–", "–", "–"]
    assert found["norm ratio (Eq. 11)"][0] == "never"
    # With a window of 8, t / (t − 8) > 0.96 as soon as the window is full and one more sample is there.
    assert found["norm ratio, window 8"][0] == "9"
    verdict = record(folder)["verdict"]
    assert verdict["held"] == "in part"
    assert "Norm ratio (Eq. 11) never fires on Digits." in verdict["why"]


def test_criteria_need_every_step(make: Make) -> None:
    study = make("table1", "criteria")
    study.cell("dense", "dense", [90.0], column="Digits", lines=lambda seed: variance_lines(seed)[::2])
    with pytest.raises(ValueError, match=r"Digits-dense-s0: the trace holds step 3 where 2 was expected"):
        write_study(study.save())
    study = make("later", "criteria")
    study.cell("dense", "dense", [90.0], column="Later", lines=lambda seed: variance_lines(seed)[1:])
    with pytest.raises(ValueError, match="read off step 1"):
        write_study(study.save())


@pytest.mark.parametrize(
    ("ends", "held"), [((80.0, 82.0), "held"), ((90.0, 82.0), "in part"), ((90.0, 90.5), "not held")]
)
def test_shares_of_the_dense_phase(make: Make, ends: tuple[float, float], held: str) -> None:
    study = make("fig7", "shares")
    for share, value in ((0.1, ends[0]), (0.3, 90.0), (0.5, 90.5), (0.9, ends[1])):
        row = f"{100 * share:.0f} %"
        study.cell(row, "step", [value - 1, value + 1], column="Digits", x=share, switch=int(100 * share))
    study.cell("AutoSwitch", "step", [90.0, 90.0], column="Digits", switch=20)
    study.cell("dense", "dense", [92.0, 92.0], column="Digits")
    folder = study.save()
    write_study(folder)
    _, columns, rows = study_rows(folder)[0]
    assert columns == ["dense phase", "Digits"]
    assert [row[0] for row in rows] == ["10 %", "30 %", "50 %", "90 %", "AutoSwitch", "dense"]
    verdict = record(folder)["verdict"]
    assert verdict["held"] == held
    assert "the best share is 50 %; within its standard deviation (1.41) are" in verdict["why"]
    assert "AutoSwitch (20.0 %) is within it." in verdict["why"]
    assert (folder / "shares.png").read_bytes().startswith(PNG)


def test_storage_shows_its_rows(make: Make) -> None:
    study = make(
        "table5", "storage", rows=[{"model": "BERT", "values_mb": 131.84}, {"model": "GPT-2", "bits": 3}]
    )
    folder = study.save()
    write_study(folder)
    assert study_rows(folder) == [
        ("Sizes", ["model", "values mb", "bits"], [["BERT", "131.8", "–"], ["GPT-2", "–", "3"]])
    ]
    assert record(folder)["verdict"] is None


def drift(start: int, scale: float, distance: float = 0.5) -> dict[str, Any]:
    rows = [{"step": start, "distance": 0.0, "bound": 0.0, "largest_square": 1.0}]
    rows += [
        {"step": t, "distance": distance * scale * t, "bound": scale * t, "largest_square": 1.0}
        for t in range(start + 1, 11)
    ]
    return {"start": start, "beta2": 0.999, "rows": rows, "config": {"task": "digits", "steps": 10}}


def test_the_bound(make: Make) -> None:
    study = make("theorem1", "bound")
    study.values["files"] = ["a.json", "b.json", "c.json"]
    (study.store / "a.json").write_text(json.dumps(drift(2, 0.2)))
    (study.store / "b.json").write_text(json.dumps(drift(5, 0.1)))
    folder = study.save()
    page = write_study(folder).read_text(encoding="utf-8")
    _, _, rows = study_rows(folder)[0]
    assert rows == [
        ["digits", "2", "1.00", "2.00", "50 %", "yes"],
        ["digits", "5", "0.500", "1.00", "50 %", "yes"],
    ]
    assert record(folder)["verdict"]["held"] == "held"
    assert "1 of 3 measurements are missing." in page
    assert (folder / "bound.png").read_bytes().startswith(PNG)


def test_a_bound_that_is_exceeded(make: Make) -> None:
    study = make("theorem1", "bound")
    study.values["files"] = ["a.json"]
    (study.store / "a.json").write_text(json.dumps(drift(2, 1.0, distance=1.5)))
    folder = study.save()
    write_study(folder)
    assert study_rows(folder)[0][2][0][-1] == "no, at 8 of 8"
    assert record(folder)["verdict"]["held"] == "not held"
    (study.store / "a.json").write_text('{"start": 1}')
    with pytest.raises(ValueError, match=r"a\.json: expected a measurement with start, beta2, rows"):
        write_study(folder)


def test_a_distance_equal_to_its_bound_but_for_rounding_holds(make: Make) -> None:
    study = make("theorem1", "bound")
    study.values["files"] = ["a.json"]
    (study.store / "a.json").write_text(json.dumps(drift(2, 1.0, distance=1 + 1e-12)))
    assert study_rows(study.save())[0][2][0][-1] == "yes"


def test_starts_are_compared_within_one_model(make: Make) -> None:
    """The later start has the smaller bound in each network, but not across the two."""
    study = make("theorem1", "bound")
    study.values["files"] = []
    for model, scale in (("resnet18", 1.0), ("densenet121", 10.0)):
        for start, factor in ((2, 2.0), (5, 1.0)):
            values = drift(start, scale * factor)
            values["config"]["task_options"] = {"model": model}
            study.values["files"].append(f"{model}{start}.json")
            (study.store / f"{model}{start}.json").write_text(json.dumps(values))
    folder = study.save()
    write_study(folder)
    assert [row[0] for row in study_rows(folder)[0][2]] == ["digits, resnet18"] * 2 + [
        "digits, densenet121"
    ] * 2
    assert record(folder)["verdict"]["held"] == "held"


def test_errors_name_the_file(make: Make, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no study\.json"):
        write_study(tmp_path)
    study = make("fig4", "paintings")
    with pytest.raises(ValueError, match=r"study\.json: view 'paintings' is none of scores, curves"):
        write_study(study.save())
    (study.path / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study\.json: not valid JSON"):
        write_study(study.path)
    study.values["cells"] = 3
    with pytest.raises(ValueError, match="expected a list as cells, found int"):
        write_study(study.save())
    (study.path / "study.json").write_text('{"name": "fig4"}')
    with pytest.raises(ValueError, match="title is missing"):
        write_study(study.path)
