import dataclasses
import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model

from nmstep import SparsityPlan
from nmstep.experiments import RunConfig, load_task, make_plan, run
from nmstep.experiments.environment import environment
from nmstep.experiments.training import Training, learning_rate
from nmstep.experiments.weights import save_weights


def config(**values):
    return RunConfig(recipe="dense", steps=10, lr=0.5, **values)


def test_constant_learning_rate_after_a_warm_up():
    rates = [learning_rate(config(warmup=4), step) for step in range(6)]
    assert rates == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_cosine_learning_rate():
    rates = [learning_rate(config(schedule="cosine", warmup=2), step) for step in range(10)]
    assert rates[:3] == [0.25, 0.5, 0.5]
    assert rates[6] == pytest.approx(0.25)
    assert rates[9] == pytest.approx(0.25 * (1 + math.cos(math.pi * 7 / 8)))
    assert min(rates) > 0  # a step of size zero would not count


def test_dense_run_is_torch_adamw_on_the_same_batches(tmp_path):
    settings = RunConfig(recipe="dense", steps=5, batch_size=8, lr=0.01, weight_decay=0.1, seed=3, threads=1)
    run(settings, tmp_path)

    task = load_task(settings)
    torch.manual_seed(3)
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, seed=3, batch_size=8)).backward()
        optimizer.step()
    trained = task.model()
    load_model(trained, tmp_path / "model.safetensors")
    for ours, reference in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-7)


def test_masked_scores_leave_the_weights_alone(small):
    task = load_task(small)
    training = Training(small.resolve(task.defaults), task)
    training.train_step()
    before = [p.detach().clone() for p in training.model.parameters()]
    scores, masked = training.evaluate()
    assert masked is not None
    assert masked["loss"] != scores["loss"]
    assert all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))


def test_result_counts_weights_and_best_sparse_score(small, tmp_path):
    result = run(small, tmp_path)
    plan = SparsityPlan.load(tmp_path / "plan.json")
    assert result["density"] == pytest.approx(plan.density, abs=1e-3)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evals = {record["step"]: record["accuracy"] for record in records if record["kind"] == "eval"}
    assert result["best"] == max(evals[45], evals[60])
    assert result["final"]["accuracy"] == evals[60]


def test_a_recipe_that_never_started_is_masked_at_the_end_with_a_warning(small, tmp_path):
    options = dataclasses.replace(small.options, clip="off")
    config = dataclasses.replace(small, steps=3, options=options)
    with pytest.warns(UserWarning, match="had not reached its final pattern"):
        result = run(config, tmp_path)
    assert (result["verified"], result["switch_step"], result["phase"]) == (True, None, "dense")


def test_a_nan_stops_the_run_and_says_where(small, tmp_path):
    config = dataclasses.replace(small, recipe="ste", options=type(small.options)(), lr=1e30)
    with pytest.raises(
        FloatingPointError, match=r"NaN or infinite gradient at optimizer step \d+ in 'conv1.weight'"
    ):
        run(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_weights_carry_their_plan_and_the_same_bytes_every_time(small, tmp_path):
    model = load_task(small).model()
    plan = make_plan(small, model)
    written = set()
    for i in range(8):
        save_weights(model, tmp_path / f"{i}.safetensors", plan=plan)
        written.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert SparsityPlan.from_dict(json.loads(file.metadata()["nm_sparsity"])) == plan
        for name, tensor in model.state_dict().items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_tied_weights_are_written_once(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(4, 4, bias=False)
            self.b = torch.nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

    model, other = Tied(), Tied()
    save_weights(model, tmp_path / "w.safetensors", plan=None)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert list(file.keys()) == ["a.weight"]
        assert "nm_sparsity" not in file.metadata()
    load_model(other, tmp_path / "w.safetensors")
    assert torch.equal(other.b.weight, model.a.weight)


def test_a_dense_run_with_a_pattern_writes_the_plan_it_is_compared_with(tmp_path):
    run(config(pattern="1:16", exclude=("conv1",), batch_size=4), tmp_path)
    assert "conv2.weight" in [entry.name for entry in SparsityPlan.load(tmp_path / "plan.json").sparse]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "nm_sparsity" not in file.metadata()


def test_a_plan_of_another_model_is_refused(tmp_path):
    text = RunConfig(task="text", task_options={"width": 32, "layers": 1}, recipe="ste", pattern="2:4")
    plan = make_plan(text, load_task(text).model())
    plan.save(tmp_path / "plan.json")
    config = RunConfig(recipe="ste", plan_file=str(tmp_path / "plan.json"))
    with pytest.raises(ValueError, match="which this DigitsCNN does not have"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "digit"}, "there is no task 'digit': did you mean 'digits'?"),
        ({"task_options": {"layers": 2}}, "task 'digits' has no option 'layers'"),
        ({"task_options": {"data": "x"}}, "task_options holds 'data'"),
        ({"data": "x"}, "brings its own data"),
    ],
)
def test_a_wrong_task_is_refused_before_anything_is_written(values, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(RunConfig(recipe="dense", **values), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_environment_says_where_a_result_comes_from():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    json.dumps(found)
