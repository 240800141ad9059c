"""A run that stops anywhere and is resumed is the run that never stopped."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from nmstep.experiments import RunConfig, checkpoint, run, runner
from nmstep.experiments.training import Training
from nmstep.experiments.weights import load_weights
from nmstep.verify import verify


class StoppedError(Exception):
    pass


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    run(small, folder)
    return folder


def stop_at_step(monkeypatch, step):
    train_step = Training.train_step

    def train_or_stop(self):
        if self.step == step:
            raise StoppedError
        return train_step(self)

    monkeypatch.setattr(Training, "train_step", train_or_stop)


def stop_in(monkeypatch, module, name, call):
    """Stops in the ``call``-th call of a function, before it does anything."""
    original, calls = getattr(module, name), []

    def do_or_stop(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise StoppedError
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, do_or_stop)


def resume_and_compare(config, folder, whole):
    result = run(config, folder, resume=True)
    assert weights(folder) == weights(whole)
    assert lines(folder) == lines(whole)
    reference = json.loads((whole / "result.json").read_text())
    for key in ("final", "best", "steps", "switch_step", "switch_reason", "density", "verified"):
        assert result[key] == reference[key]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("step", [3, 10, 27, 31, 32, 45, 59])
def test_stopped_before_a_step(step, small, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at_step(patched, step)
        with pytest.raises(StoppedError):
            run(small, tmp_path)
    resume_and_compare(small, tmp_path, whole)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (checkpoint, "write_atomically", 3),  # metrics are on the disk, the checkpoint is not
        (checkpoint, "write_json", 1),  # the first checkpoint is there, what points to it is not
        (checkpoint, "write_json", 4),
        (runner, "save_weights", 1),
        (runner, "_verify", 1),
        (runner, "write_json", 4),  # environment, plan, config, result
        (runner, "write_json", 3),
    ],
)
def test_stopped_while_saving(module, name, call, small, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_in(patched, module, name, call)
        with pytest.raises(StoppedError):
            run(small, tmp_path)
    resume_and_compare(small, tmp_path, whole)


@pytest.mark.parametrize("recipe", ["dense", "asp", "sr-ste", "decaying-mask"])
def test_every_recipe_resumes(recipe, small, tmp_path, monkeypatch):
    options = dataclasses.replace(small.options, threshold=None, window=None, eps_root=None)
    if recipe == "asp":
        options = dataclasses.replace(options, start=12)
    config = dataclasses.replace(small, recipe=recipe, options=options, steps=30, checkpoint_every=7)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at_step(patched, 19)
        with pytest.raises(StoppedError):
            run(config, tmp_path / "again")
    resume_and_compare(config, tmp_path / "again", tmp_path / "whole")


KILLED = """
import json, sys
from nmstep.experiments import RunConfig, run
run(RunConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2], resume=True)
"""


def test_killed_by_the_system(small, tmp_path):
    """SIGKILL twice at whatever moment it comes, and resumption in between, in processes of their own."""
    config = dataclasses.replace(small, steps=120, checkpoint_every=4, eval_every=50)
    run(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, json.dumps(config.to_dict()), str(folder)]
    for name in ("checkpoint-8.pt", "checkpoint-60.pt"):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        wait_for_checkpoint(folder, at_least=int(name[11:-3]), process=process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "result.json").exists()
    resume_and_compare(config, folder, tmp_path / "whole")


def wait_for_checkpoint(folder, *, at_least, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        steps = [int(path.stem.partition("-")[2]) for path in folder.glob("checkpoint-*.pt")]
        if max(steps, default=0) >= at_least:
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint appeared")


def test_a_full_disk_loses_nothing(small, whole, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a checkpoint is larger, the rest is not
    try:
        with pytest.raises(
            OSError, match=r"cannot save: File too large.*make room and resume.*checkpoint-10.pt"
        ):
            run(small, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*checkpoint*"))
    resume_and_compare(small, tmp_path, whole)


def test_metrics_are_in_step_order_and_hold_every_step_once(whole):
    records = [json.loads(line) for line in lines(whole)]
    steps = [record["step"] for record in records]
    assert steps == sorted(steps)
    assert [record["step"] for record in records if record["kind"] == "step"] == list(range(1, 61))
    assert [record["step"] for record in records if record["kind"] == "eval"] == [15, 30, 45, 60]
    assert [record["masked"] is None for record in records if record["kind"] == "eval"] == [
        False,
        False,
        True,
        True,
    ]
    switches = [record for record in records if record["kind"] == "switch"]
    assert switches == [{"kind": "switch", "step": 31, "reason": "t_max"}]


def test_only_the_last_two_checkpoints_stay(whole):
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == [
        "checkpoint-50.pt",
        "checkpoint-60.pt",
    ]


def test_a_checkpoint_that_a_killed_save_left_is_removed_at_the_end(small, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_in(patched, checkpoint, "remove_older", 6)  # after the last checkpoint
        with pytest.raises(StoppedError):
            run(small, tmp_path)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3
    resume_and_compare(small, tmp_path, whole)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_a_finished_run_returns_its_result_at_once(small, whole, monkeypatch):
    stop_at_step(monkeypatch, 0)
    monkeypatch.setattr(runner, "Training", None)
    assert run(small, whole, resume=True) == json.loads((whole / "result.json").read_text())


def test_a_folder_with_a_run_is_not_written_over(small, whole):
    with pytest.raises(FileExistsError, match=r"holds a run already: resume it \(--resume, resume=True\) or"):
        run(small, whole)


def test_another_configuration_is_told_by_its_keys(small, whole):
    other = dataclasses.replace(small, seed=5, lr=0.5)
    with pytest.raises(
        ValueError, match=r"another configuration: lr is 0.001 there, 0.5 here; seed is 0 there, 5 here"
    ):
        run(other, whole, resume=True)


def test_a_configuration_that_appears_meanwhile_is_seen(small, whole, tmp_path, monkeypatch):
    """Another process may have begun, or finished, a run between a look at the folder and the lock."""
    only_one = runner.only_one

    def after_another(folder):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        return only_one(folder)

    monkeypatch.setattr(runner, "only_one", after_another)
    with pytest.raises(ValueError, match="holds a run of another configuration: seed is 0 there, 5 here"):
        run(dataclasses.replace(small, seed=5), tmp_path)


@pytest.mark.parametrize("lost", ["training", "metrics_sha256"])
def test_a_checkpoint_of_something_else_is_an_error(lost, small, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").unlink()
    state = checkpoint.load_latest(tmp_path)
    del state[lost]
    checkpoint.save(tmp_path, state, step=60)
    with pytest.raises(ValueError, match=f"is whole, but not of this run: KeyError.'{lost}'.*train again in"):
        run(small, tmp_path, resume=True)


def test_final_weights_with_one_wrong_bit_are_found(small, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert verify(tmp_path).ok
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    for read in (verify, lambda folder: load_weights(torch.nn.Linear(2, 2), folder)):
        with pytest.raises(
            ValueError, match=r"model.safetensors' is damaged, or was changed.*resume the run"
        ):
            read(tmp_path)
    (tmp_path / "result.json").unlink()
    resume_and_compare(small, tmp_path, whole)
    assert verify(tmp_path).ok


def test_threads_and_checkpoints_may_differ(small, whole):
    run(dataclasses.replace(small, threads=None, checkpoint_every=0), whole, resume=True)


def test_callers_random_numbers_and_threads_are_left_alone(tiny, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(dataclasses.replace(tiny, steps=1, threads=2), tmp_path)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == 1


def test_two_processes_do_not_share_a_folder(tiny, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process is training in"):
        run(tiny, tmp_path)
    os.close(descriptor)


def test_resume_without_a_run_starts_one(tiny, tmp_path):
    assert run(tiny, tmp_path / "new", resume=True)["steps"] == 6


def test_saved_configuration_is_complete(whole):
    config = RunConfig.load(whole / "config.json")
    assert (config.lr, config.weight_decay, config.steps) == (1e-3, 0.0, 60)
