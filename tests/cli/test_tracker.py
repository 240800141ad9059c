"""``nmstep train --tracker``: each step once, scores too, the same after an interruption."""

import json
import sys

import pytest

from nmstep.experiments.training import Training

FLAGS = ["--recipe", "step", "--checkpoint-every", "2", "--eval-every", "2"]


def lines(folder):
    return [json.loads(line) for line in (folder / "nm_trace.jsonl").read_text().splitlines()]


def test_each_step_and_score_is_a_line(nmstep, small, tmp_path):
    status, _, err = nmstep("train", *small, *FLAGS, "--tracker", "jsonl", "--out", "r")
    assert status == 0, err
    found = lines(tmp_path / "r")
    assert [line["step"] for line in found if "nm/loss" in line] == [1, 2, 3, 4, 5, 6]
    recorded = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in recorded if record["kind"] == "step"]
    assert [line["nm/loss"] for line in found if "nm/loss" in line] == losses
    scores = {line["step"]: line["eval/accuracy"] for line in found if "eval/accuracy" in line}
    assert scores == {r["step"]: r["accuracy"] for r in recorded if r["kind"] == "eval"}
    assert any("eval/masked/accuracy" in line for line in found)


@pytest.mark.parametrize("after", [3, 5])
def test_a_resumed_runs_lines_are_those_of_an_undisturbed_one(nmstep, small, tmp_path, monkeypatch, after):
    nmstep("train", *small, *FLAGS, "--tracker", "jsonl", "--out", "whole")
    step = Training.train_step

    def interrupted(self):
        if self.step == after:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Training, "train_step", interrupted)
    status, _, err = nmstep("train", *small, *FLAGS, "--tracker", "jsonl", "--out", "cut")
    assert status == 130
    assert "nmstep train --out cut --resume --tracker jsonl" in " ".join(err.split())
    assert lines(tmp_path / "cut")[-1]["step"] == after  # beyond its checkpoint
    monkeypatch.setattr(Training, "train_step", step)
    assert nmstep("train", "--out", "cut", "--resume", "--tracker", "jsonl")[0] == 0
    assert (tmp_path / "cut/nm_trace.jsonl").read_text() == (tmp_path / "whole/nm_trace.jsonl").read_text()
    # A finished run is finished: its files stay.
    assert nmstep("train", "--out", "cut", "--resume", "--tracker", "jsonl")[0] == 0
    assert (tmp_path / "cut/nm_trace.jsonl").read_text() == (tmp_path / "whole/nm_trace.jsonl").read_text()


def test_tensorboard_has_events_in_the_run_folder(nmstep, small, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert nmstep("train", *small, *FLAGS, "--tracker", "tensorboard", "--out", "r")[0] == 0
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("nm/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("eval/accuracy")] == [2, 4, 6]


def test_without_tensorboard_nothing_begins(nmstep, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    status, _, err = nmstep("train", *small, "--tracker", "tensorboard", "--out", "r")
    assert status == 2
    assert "pip install 'nmstep[tensorboard]'" in " ".join(err.split())
    assert not (tmp_path / "r").exists()


def test_a_tracker_is_no_run_to_begin(nmstep):
    for flags in (["--tracker", "jsonl"], ["--tracker=jsonl"]):
        status, _, err = nmstep("train", "--out", "none", "--resume", *flags)
        assert status == 2
        assert "no run to resume in 'none'" in err


def test_an_unknown_tracker_is_answered_with_the_known(nmstep, small):
    status, out, err = nmstep("train", *small, "--tracker", "wandb")
    assert status == 2
    assert "tensorboard|jsonl" in " ".join((out + err).split())


def test_no_room_for_the_trace_names_the_file(nmstep, small, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "nm_trace.jsonl").mkdir()
    status, _, err = nmstep("train", *small, "--tracker", "jsonl", "--out", "r")
    assert status == 2
    assert "r/nm_trace.jsonl" in "".join(err.split())
