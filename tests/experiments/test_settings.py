"""Settings of a run beyond AdamW in fp32 from scratch, each against plain torch."""

import json

import pytest
import torch
from safetensors.torch import load_file, load_model

from nmstep.experiments import RunConfig, load_task, run
from nmstep.experiments.training import learning_rate

SETTINGS = {
    "recipe": "dense",
    "steps": 4,
    "batch_size": 8,
    "lr": 0.05,
    "seed": 3,
    "threads": 1,
    "device": "cpu",
}


def trained(folder, **settings):
    """Returns the model of a run, and what plain torch starts from."""
    config = RunConfig(**{**SETTINGS, **settings})
    run(config, folder)
    task = load_task(config)
    torch.manual_seed(3)
    start, end = task.model(), task.model()
    load_model(end, folder / "model.safetensors")
    return task, start, end


def equal(ours, reference):
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_linear_learning_rate_ends_one_step_above_zero():
    config = RunConfig(recipe="dense", steps=10, lr=0.5, schedule="linear", warmup=5)
    rates = [learning_rate(config, step) for step in range(10)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_inverse_root_learning_rate_halves_at_four_times_the_warm_up():
    config = RunConfig(recipe="dense", steps=100, lr=0.5, schedule="inverse-sqrt", warmup=9)
    assert learning_rate(config, 8) == 0.5
    assert learning_rate(config, 35) == pytest.approx(0.25)
    assert learning_rate(config, 80) == pytest.approx(0.5 / 3)


def test_sgd_with_momentum(tmp_path):
    task, model, ours = trained(tmp_path, optimizer="sgd", momentum=0.8, weight_decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8, weight_decay=0.1)
    for step in range(4):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, seed=3, batch_size=8)).backward()
        optimizer.step()
    equal(ours, model)


def test_sgd_cannot_freeze_a_variance(tmp_path):
    config = RunConfig(
        **{**SETTINGS, "recipe": "step", "pattern": "1:4", "exclude": ("conv1",), "optimizer": "sgd"}
    )
    with pytest.raises(ValueError, match=r"nmstep\.AdamW"):
        run(config, tmp_path)


def test_gradients_are_clipped_together(tmp_path):
    task, model, ours = trained(tmp_path, optimizer="sgd", momentum=0.0, clip_norm=0.01, steps=1)
    before = [p.detach().clone() for p in model.parameters()]
    moved = torch.cat([(a - b).flatten() for a, b in zip(ours.parameters(), before, strict=True)])
    assert task.name == "digits"
    assert moved.norm().item() == pytest.approx(0.05 * 0.01, rel=1e-3)


def test_bf16_is_autocast_over_fp32_weights(tmp_path):
    task, model, ours = trained(tmp_path, precision="bf16", weight_decay=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(model, task.batch(step, seed=3, batch_size=8))
        loss.backward()
        optimizer.step()
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    equal(ours, model)


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    run(RunConfig(**SETTINGS), tmp_path / "first")
    pruned = {"recipe": "asp", "pattern": "1:4", "exclude": ("conv1",), "lr": 1e-12}
    config = RunConfig(**{**SETTINGS, **pruned, "init": str(tmp_path / "first")})
    run(config, tmp_path / "second")
    dense = load_file(tmp_path / "first" / "model.safetensors")
    sparse = load_file(tmp_path / "second" / "model.safetensors")
    kept = sparse["head.weight"] != 0
    assert kept.float().mean() == 0.25
    torch.testing.assert_close(sparse["head.weight"][kept], dense["head.weight"][kept])


def test_weights_of_another_model_are_refused(tmp_path):
    run(RunConfig(**SETTINGS), tmp_path / "digits")
    config = RunConfig(
        **{**SETTINGS, "task": "text", "task_options": {"width": 8, "heads": 1, "layers": 1, "context": 8}},
        init=str(tmp_path / "digits"),
    )
    with pytest.raises(ValueError, match=r"of another model: .* is missing.*more differences"):
        run(config, tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="give a finished run"):
        run(RunConfig(**SETTINGS, init=str(tmp_path / "nowhere")), tmp_path / "other")


def test_an_unknown_device_and_an_absent_gpu_are_named():
    with pytest.raises(ValueError, match="device='gpu': expected a device of torch"):
        RunConfig(recipe="dense", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device='cuda:1': .* finds no GPU here"):
            RunConfig(recipe="dense", device="cuda:1")


def test_a_run_says_what_it_took(tmp_path):
    result = run(RunConfig(**SETTINGS), tmp_path)
    assert 0 < result["cpu_seconds"] < 60
    assert result["peak_memory_mb"] is None or 50 < result["peak_memory_mb"] < 20_000


def test_a_configuration_of_before_a_setting_existed_is_resumed(tmp_path):
    run(RunConfig(**SETTINGS), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["clip_norm"]
    path.write_text(json.dumps(values))
    assert run(RunConfig(**SETTINGS), tmp_path, resume=True)["steps"] == 4
