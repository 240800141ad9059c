import contextlib
import dataclasses
import json
import multiprocessing
import signal

import pytest

from nmstep.experiments import CompareConfig, RunConfig, compare, demo_config
from nmstep.experiments.pool import Job, run_jobs
from nmstep.experiments.training import Training


@pytest.fixture
def config():
    return CompareConfig(
        recipes=("dense", "ste"),
        patterns=("1:16",),
        seeds=(0, 1),
        exclude=("conv1",),
        steps=4,
        batch_size=8,
        checkpoint_every=2,
    )


class Recorder:
    """Remembers what it is told."""

    def __init__(self):
        self.calls = []

    def started(self, name, total, step):
        self.calls.append(("started", name, total, step))

    def update(self, name, status):
        self.calls.append(("update", name, status.step))

    def ended(self, name, outcome):
        self.calls.append(("ended", name, outcome.error))


def names_of(calls, kind):
    return [call[1] for call in calls if call[0] == kind]


ALL = ["dense-s0", "dense-s1", "ste-1x16-s0", "ste-1x16-s1"]


def test_every_run_gets_its_folder_and_finished_ones_are_not_repeated(config, tmp_path):
    first, again = Recorder(), Recorder()
    comparison = compare(config, tmp_path, progress=first)
    assert [folder.name for folder in comparison.folders] == ALL
    assert comparison.failures == {}
    assert all(json.loads((tmp_path / name / "result.json").read_text())["steps"] == 4 for name in ALL)
    assert CompareConfig.load(tmp_path / "compare.json") == config
    assert names_of(first.calls, "started") == ALL

    (tmp_path / "dense-s1" / "result.json").unlink()
    assert compare(config, tmp_path, progress=again).outcomes.keys() == comparison.outcomes.keys()
    assert [call for call in again.calls if call[0] == "started"] == [("started", "dense-s1", 4, 4)]
    assert names_of(again.calls, "ended") == ALL


def test_a_comparison_grows(config, tmp_path):
    recorder = Recorder()
    compare(dataclasses.replace(config, seeds=(0,)), tmp_path)
    compare(config, tmp_path, progress=recorder)
    assert names_of(recorder.calls, "started") == ["dense-s1", "ste-1x16-s1"]


def test_a_folder_of_another_comparison_is_refused_before_anything_runs(config, tmp_path, monkeypatch):
    compare(dataclasses.replace(config, recipes=("ste",), seeds=(1,)), tmp_path)
    monkeypatch.setattr(Training, "train_step", None)
    with pytest.raises(
        ValueError, match=r"ste-1x16-s1' holds a run of another configuration: lr is 0.001 there, 0.5"
    ):
        compare(dataclasses.replace(config, lr=0.5), tmp_path)
    assert not (tmp_path / "dense-s0").exists()


def test_a_pattern_that_fits_no_layer_is_refused_before_anything_runs(config, tmp_path):
    with pytest.raises(ValueError, match="can become sparse"):
        compare(dataclasses.replace(config, patterns=("1:16", "3:7"), exclude=()), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_one_failure_is_told_and_the_others_go_on(config, tmp_path, monkeypatch):
    train_step = Training.train_step

    def fail(self):
        if (self.config.recipe, self.config.seed) == ("dense", 1):
            raise FloatingPointError("NaN in fc1")
        return train_step(self)

    monkeypatch.setattr(Training, "train_step", fail)
    comparison = compare(config, tmp_path)
    assert [(name, outcome.error) for name, outcome in comparison.failures.items()] == [
        ("dense-s1", "NaN in fc1")
    ]
    assert "FloatingPointError" in comparison.failures["dense-s1"].details
    assert [folder.name for folder in comparison.folders] == ["dense-s0", "ste-1x16-s0", "ste-1x16-s1"]


def test_warnings_are_collected(config, tmp_path):
    comparison = compare(dataclasses.replace(config, exclude=(), recipes=("ste",)), tmp_path)
    ((text, names),) = comparison.warnings.items()
    assert "'conv1.weight'" in text
    assert names == ["ste-1x16-s0", "ste-1x16-s1"]


def test_a_killed_process_fails_its_run_only(tmp_path):
    """Of three runs in two processes one is killed; another process takes its place."""

    class Killer(Recorder):
        def started(self, name, total, step):
            if not self.calls:
                with contextlib.suppress(ProcessLookupError):
                    multiprocessing.active_children()[0].kill()
            super().started(name, total, step)

    configs = {f"s{seed}": RunConfig(recipe="dense", steps=10, seed=seed, threads=1) for seed in range(3)}
    jobs = [Job(name=name, config=c, folder=tmp_path / name) for name, c in configs.items()]
    recorder = Killer()
    outcomes = run_jobs(jobs, processes=2, progress=recorder)
    errors = [outcome.error for outcome in outcomes.values() if outcome.error]
    assert errors == [
        f"its process was ended by {signal.SIGKILL.name} (out of memory?); start again to resume it"
    ]
    assert sorted(outcomes) == ["s0", "s1", "s2"]

    again = run_jobs(jobs, processes=1)
    assert [outcome.result["steps"] for outcome in again.values()] == [10, 10, 10]
    assert multiprocessing.active_children() == []


def test_the_demonstration_has_the_recipes_of_the_paper():
    names = [name for name, _ in demo_config().runs()]
    assert len(names) == 12
    assert {name.rpartition("-")[0] for name in names} == {"dense", "asp-1x16", "sr-ste-1x16", "step-1x16"}
