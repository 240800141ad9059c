import json
from dataclasses import replace

import pytest
import torch

from nmstep import SparsityPlan
from nmstep.experiments import RunConfig, load_task, run
from nmstep.experiments.paper import preparations, run_name
from nmstep.experiments.paper.study import Drift, LayerSearch
from nmstep.experiments.training import Training

DENSE = RunConfig(recipe="dense", steps=10, batch_size=8, device="cpu", threads=1)


def test_the_drift_is_that_of_the_optimizers_variance(tmp_path):
    """The oracle reads gradients before and variances after each step of the same training."""
    path = preparations.measure_drift(Drift(config=DENSE, start=0.3), tmp_path)
    measured = json.loads(path.read_text())
    assert [row["step"] for row in measured["rows"]] == list(range(3, 11))
    assert (measured["start"], measured["beta2"]) == (3, 0.999)

    task = load_task(DENSE)
    training = Training(DENSE.resolve(task.defaults), task)
    largest = [0.0]
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: largest.append(
            max(
                largest[-1], *(float(p.grad.abs().max()) for g in optimizer.param_groups for p in g["params"])
            )
        )
    )
    corrected = {}
    for step in range(1, 11):
        training.train_step()
        entries = training.optimizer.state.values()
        corrected[step] = torch.cat([e["exp_avg_sq"].flatten() for e in entries]) / (1 - 0.999**step)
    for row in measured["rows"]:
        step = row["step"]
        distance = float((corrected[step] - corrected[3]).abs().max())
        share = (1 - 0.999 ** (step - 3)) / (1 - 0.999**step)
        assert row["distance"] == pytest.approx(distance, rel=1e-3, abs=1e-9)
        assert row["bound"] == pytest.approx(share * largest[step] ** 2, rel=1e-3, abs=1e-9)
        assert row["distance"] <= row["bound"] * (1 + 1e-6)
    assert measured["rows"][-1]["distance"] > 0


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    drift = Drift(config=DENSE, start=0.0)
    path = preparations.measure_drift(drift, tmp_path)
    assert json.loads(path.read_text())["start"] == 1  # before the first step there is no variance
    monkeypatch.setattr(preparations, "load_task", None)
    assert preparations.measure_drift(drift, tmp_path) == path


def test_layers_are_searched_for_from_the_dense_run(tmp_path, monkeypatch):
    settings = (("check_every", 5), ("double_penalty_after", 20), ("double_penalty_every", 5))
    search = LayerSearch(config=DENSE, m=4, target=0.4, settings=settings)
    with pytest.raises(FileNotFoundError):
        preparations.search_layers(search, tmp_path)
    run(DENSE, tmp_path / run_name(DENSE))
    with pytest.warns(UserWarning, match="conv1"):
        path = preparations.search_layers(search, tmp_path)
    sparse = SparsityPlan.load(path).sparse
    zeros = sum(entry.numel - entry.kept for entry in sparse)
    assert zeros / sum(entry.numel for entry in sparse) >= 0.4
    assert {entry.pattern.m for entry in sparse} == {4}
    monkeypatch.setattr(preparations, "load_task", None)
    assert preparations.search_layers(search, tmp_path) == path


def test_layers_are_searched_for_on_the_runs_device_with_its_threads(tmp_path, monkeypatch):
    class SeenError(Exception):
        pass

    def look(model, *_, **__):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert torch.get_num_threads() == 1
        raise SeenError

    run(DENSE, tmp_path / run_name(DENSE))
    monkeypatch.setattr(preparations, "dominosearch", look)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(SeenError):
            preparations.search_layers(
                LayerSearch(config=replace(DENSE, device="meta"), m=4, target=0.4), tmp_path
            )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
