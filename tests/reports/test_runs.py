"""Reading run folders, whole and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nmstep.reports import load_runs

Write = Callable[..., Path]


def test_a_run_comes_back_as_written(write: Write) -> None:
    folder = write("step", "1:16", 3, 97.5, loss=0.06)
    (run,) = load_runs(folder.parent)
    assert (run.name, run.task, run.recipe, run.pattern, run.seed) == (
        "step-1x16-s3",
        "digits",
        "step",
        "1:16",
        3,
    )
    assert (run.metric, run.higher_is_better, run.finished, run.diverged) == ("accuracy", True, True, False)
    assert (run.switch_step, run.switch_reason, run.last_step) == (40, "t_max", 100)
    assert len(run.steps) == 100
    assert len(run.evals) == 10
    assert len(run.layers) == 2 * 3  # two layers at steps 60, 80, 100
    assert run.plan is not None
    assert len(run.plan.sparse) == 2


def test_the_run_folder_itself_may_be_given(write: Write) -> None:
    folder = write("dense", None, 0, 98.0)
    assert [run.name for run in load_runs(folder)] == ["dense-s0"]


def test_a_dense_run_has_no_pattern_whatever_it_is_compared_with(write: Write) -> None:
    folder = write("dense", "1:4", 0, 98.0)
    assert load_runs(folder)[0].pattern is None


def test_a_plan_file_stands_in_for_the_pattern(write: Write) -> None:
    folder = write("step", None, 0, 98.0, plan_file="plans/mixed.json")
    assert load_runs(folder)[0].pattern == "mixed"


def test_an_unfinished_run_is_read_as_far_as_it_got(write: Write) -> None:
    folder = write("step", "1:4", 0, 97.0, finished=False, steps=55)
    (run,) = load_runs(folder)
    assert (run.finished, run.last_step, run.switch_step, run.metric) == (False, 55, 40, "accuracy")


@pytest.mark.parametrize(
    ("scores", "metric", "higher"),
    [
        ({"matthews": 20.0, "accuracy": 70.0}, "matthews", True),
        ({"perplexity": 9.0, "accuracy": 70.0}, "perplexity", False),
        ({"bleu": 20.0}, "bleu", True),
    ],
)
def test_an_unfinished_run_goes_by_its_tasks_metric(
    write: Write, scores: dict[str, float], metric: str, higher: bool
) -> None:
    folder = write("sr-ste", "2:4", 0, 0.0, finished=False)
    record = {"kind": "eval", "step": 50, "phase": "sparse", "loss": 1.0, **scores, "masked": None}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (run,) = load_runs(folder)
    assert (run.metric, run.higher_is_better) == (metric, higher)


def test_a_torn_last_line_is_left_out(write: Write) -> None:
    folder = write("asp", "1:4", 0, 97.0, finished=False)
    file = folder / "metrics.jsonl"
    whole = load_runs(folder)[0]
    file.write_bytes(file.read_bytes() + b'{"kind": "step", "step": 101, "lo\xc3')
    assert load_runs(folder)[0].steps == whole.steps


def test_a_run_without_metrics_has_only_its_configuration(write: Write) -> None:
    folder = write("asp", "1:4", 0, 97.0, finished=False)
    (folder / "metrics.jsonl").unlink()
    (folder / "environment.json").unlink()
    (run,) = load_runs(folder)
    assert (run.last_step, run.metric, run.environment) == (0, "loss", {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "step", "st', "not valid JSON"),
        ("[1]", "a JSON object with a 'kind'"),
        ('{"kind": "step", "step": "7"}', "number of optimizer steps, got '7'"),
        ('{"kind": "step", "step": 7, "z": "small"}', "'z' holds 'small'"),
        ('{"kind": "eval", "step": 7, "masked": 3}', "'masked' holds 3"),
        ('{"kind": "layers", "step": 7, "flip_rate": 0.1}', "needs its 'name'"),
    ],
)
def test_a_malformed_line_is_named(write: Write, line: str, message: str) -> None:
    folder = write("asp", "1:4", 0, 97.0)
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:4], line, *lines[4:]]) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        load_runs(folder)
    assert f"{file}, line 5" in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "result.json"])
def test_a_malformed_file_is_named(write: Write, name: str) -> None:
    folder = write("asp", "1:4", 0, 97.0)
    (folder / name).write_text('{"a": 1,\n "b"')
    with pytest.raises(ValueError, match="line 2: not valid JSON") as error:
        load_runs(folder)
    assert str(folder / name) in str(error.value)


def test_a_file_that_is_no_text_is_named(write: Write) -> None:
    folder = write("asp", "1:4", 0, 97.0)
    (folder / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"result\.json: not UTF-8"):
        load_runs(folder)


def test_a_result_without_a_number_is_an_error(write: Write) -> None:
    folder = write("asp", "1:4", 0, 97.0)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "final": {"loss": 0.1}}))
    with pytest.raises(ValueError, match=r"expected a number at final\.accuracy"):
        load_runs(folder)
    (folder / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="metric, higher_is_better, final is missing"):
        load_runs(folder)


def test_a_config_that_is_no_runs_is_passed_over_unless_metrics_lie_beside_it(write: Write) -> None:
    folder = write("asp", "1:4", 0, 97.0)
    model = folder.parent / "exported"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["GPT2"]}')
    assert len(load_runs(folder.parent)) == 1
    (model / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="task, recipe, seed is missing"):
        load_runs(folder.parent)


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no run found in .* config\.json with the keys task, recipe"
    ):
        load_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_runs(tmp_path / "absent")
