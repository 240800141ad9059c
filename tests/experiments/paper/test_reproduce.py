import importlib
import json
import warnings

import pytest

from nmstep.experiments.paper import Scope, reproduce, run_name
from nmstep.experiments.paper.study import Drift, LayerSearch
from nmstep.experiments.training import Training
from nmstep.recipes.layerwise import TargetNotReachedError

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def fail(monkeypatch):
    """Lets the steps of some runs fail."""
    train_step = Training.train_step

    def which(test):
        def step(self):
            if test(self.config):
                raise FloatingPointError("NaN in fc1")
            return train_step(self)

        monkeypatch.setattr(Training, "train_step", step)

    return which


def test_every_run_is_done_once_and_shared(recorder, tmp_path):
    first, second, again = recorder(), recorder(), recorder()
    done = reproduce("table2", tmp_path, scope=Scope(seeds=(0, 1)), progress=first)
    assert {name.split("-")[1] for name in done.outcomes} == {"dense"}
    assert [outcome.result["steps"] for outcome in done.outcomes.values()] == [4, 4]
    assert done.folder == tmp_path / "table2"

    wider = reproduce("fig4", tmp_path, scope=Scope(seeds=(0, 1)), progress=second)
    assert {name.split("-")[1] for name in second.started_at} == {"ste"}
    assert set(second.ended_as) == set(wider.outcomes)
    assert wider.outcomes.keys() > done.outcomes.keys()
    assert all(wider.outcomes[name].result == done.outcomes[name].result for name in done.outcomes)

    reproduce("fig4", tmp_path, scope=Scope(seeds=(0, 1)), progress=again)
    assert again.started_at == {}
    assert set(again.ended_as) == set(wider.outcomes)


def test_the_study_is_written_beside_its_runs(tmp_path):
    done = reproduce("fig4", tmp_path, scope=Scope(seeds=(5,)))
    values = json.loads((tmp_path / "fig4" / "study.json").read_text())
    assert (values["name"], values["scale"], values["view"]) == ("fig4", "cpu", "scores")
    assert "commit" in values["environment"]
    runs = [run for cell in values["cells"] for run in cell["runs"]]
    assert sorted(runs) == sorted(done.outcomes)
    assert all((tmp_path / "runs" / run / "result.json").exists() for run in runs)


def test_a_wrong_scope_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="no workload 'digts': did you mean 'digits'"):
        reproduce("fig4", tmp_path / "new", scope=Scope(only=("digts",)))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_configuration_is_refused_before_anything_runs(tmp_path, monkeypatch):
    reproduce("table2", tmp_path, scope=Scope(seeds=(1,)))
    (folder,) = (tmp_path / "runs").iterdir()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "weight_decay": 0.5}))
    monkeypatch.setattr(Training, "train_step", None)
    with pytest.raises(ValueError, match=r"another configuration: weight_decay is 0.5 there"):
        reproduce("fig4", tmp_path, scope=Scope(seeds=(0, 1)))
    assert not (tmp_path / "fig4").exists()


def test_one_failure_does_not_stop_the_others(fail, tmp_path):
    fail(lambda config: (config.recipe, config.seed) == ("dense", 0))
    outcomes = reproduce("fig4", tmp_path, scope=Scope(seeds=(0, 1))).outcomes
    errors = {(name.split("-")[1], name[-2:]): outcome.error for name, outcome in outcomes.items()}
    assert errors == {
        ("dense", "s0"): "NaN in fc1",
        ("dense", "s1"): None,
        ("ste", "s0"): None,
        ("ste", "s1"): None,
    }


def test_an_interrupted_study_goes_on_at_its_checkpoint(monkeypatch, recorder, tmp_path):
    train_step, steps = Training.train_step, []

    def interrupt(self):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.step)
        return train_step(self)

    monkeypatch.setattr(Training, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reproduce("table2", tmp_path, scope=Scope(seeds=(0,)))
    monkeypatch.setattr(Training, "train_step", train_step)
    again = recorder()
    done = reproduce("table2", tmp_path, scope=Scope(seeds=(0,)), progress=again)
    assert list(again.started_at.values()) == [3]
    assert [outcome.result["steps"] for outcome in done.outcomes.values()] == [4]


def test_what_needs_a_failed_run_is_not_run(define, workload, fail, tmp_path):
    def parts(scope):
        first = workload(scope)
        before = first.run("dense", lr=0.5, seed=0)
        tuned = first.cell("STE", "ste", "1:16", init=scope.file(run_name(before)))
        return {"before": (before,), "cells": (tuned, first.cell("dense", "dense"))}

    define("table3", parts)
    fail(lambda config: config.lr == 0.5)
    outcomes = reproduce("table3", tmp_path, scope=Scope(seeds=(0,))).outcomes
    (before,) = (name for name, outcome in outcomes.items() if outcome.error == "NaN in fc1")
    assert [outcome.error for name, outcome in outcomes.items() if "-ste-" in name] == [
        f"not run, since {before} failed"
    ]
    assert [outcome.error for name, outcome in outcomes.items() if "-dense-" in name and name != before] == [
        None
    ]


@pytest.mark.parametrize("dense_fails", [False, True])
def test_what_needs_a_failed_search_is_not_run(define, workload, dense_fails, fail, monkeypatch, tmp_path):
    def parts(scope):
        dense = workload(scope).run("dense", seed=0)
        search = LayerSearch(config=dense, m=8, target=0.75)
        layerwise = workload(scope).cell("Domino", "ste", plan_file=scope.file(search.file))
        return {"before": (dense, search), "cells": (layerwise,)}

    def give_up(search, store):
        assert (store / run_name(search.config) / "result.json").exists()
        raise TargetNotReachedError("conv2 is at 0.5", None)

    define("table4", parts)
    fail(lambda config: dense_fails and config.recipe == "dense")
    monkeypatch.setattr(
        importlib.import_module("nmstep.experiments.paper.reproduce"), "search_layers", give_up
    )
    outcomes = reproduce("table4", tmp_path, scope=Scope(seeds=(0,))).outcomes
    dense, file, ste = outcomes
    assert file.startswith("domino-digits-m8")
    if dense_fails:
        assert outcomes[file].error == f"not done, since {dense} failed"
    else:
        assert "conv2 is at 0.5" in outcomes[file].error
    assert outcomes[ste].error == f"not run, since {file} failed"


def test_a_measurement_is_a_preparation_of_its_own(define, workload, recorder, tmp_path):
    def parts(scope):
        return {"before": (Drift(config=workload(scope).run("dense"), start=0.5),)}

    define("theorem1", parts)
    first, again = recorder(), recorder()
    ((file, outcome),) = reproduce("theorem1", tmp_path, progress=first).outcomes.items()
    assert (outcome.error, first.ended_as) == (None, {file: None})
    assert (tmp_path / "runs" / file).exists()
    reproduce("theorem1", tmp_path, progress=again)
    assert (again.started_at, again.ended_as) == ({}, {file: None})


def test_a_measurement_of_another_configuration_is_refused(define, workload, tmp_path):
    def parts(scope):
        return {"before": (Drift(config=workload(scope).run("dense"), start=0.5),)}

    define("theorem1", parts)
    (file,) = reproduce("theorem1", tmp_path).outcomes
    path = tmp_path / "runs" / file
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "config": {**values["config"], "data": "elsewhere"}}))
    with pytest.raises(
        ValueError, match=f"{file}' holds .* another configuration: data is 'elsewhere' there"
    ):
        reproduce("theorem1", tmp_path)


def test_no_jobs_at_a_time_are_refused(tmp_path):
    with pytest.raises(ValueError, match="jobs=0: expected at least 1"):
        reproduce("table2", tmp_path, jobs=0)
    assert not (tmp_path / "table2").exists()


def test_warnings_of_a_search_are_kept(define, workload, monkeypatch, tmp_path):
    def search(_, store):
        warnings.warn("conv1 stays dense", stacklevel=1)
        return store

    define("table4", lambda s: {"before": (LayerSearch(config=workload(s).run("dense"), m=8, target=0.75),)})
    monkeypatch.setattr(
        importlib.import_module("nmstep.experiments.paper.reproduce"), "search_layers", search
    )
    (outcome,) = reproduce("table4", tmp_path).outcomes.values()
    assert outcome.warnings == ("conv1 stays dense",)
