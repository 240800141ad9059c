import json
import subprocess
import sys

import pytest
import torch

import nmstep as package
from nmstep.cli import actions
from nmstep.experiments import CompareConfig


def test_version(nmstep):
    assert nmstep("--version") == (0, f"nmstep {package.__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    ["train", "compare", "tune", "reproduce", "plan", "verify", "pack", "export", "bench", "report", "demo"],
)
def test_help_fits_80_columns(command, nmstep):
    status, out, _ = nmstep(command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80


def test_no_arguments_show_the_commands(nmstep):
    status, out, _ = nmstep()
    assert status == 0
    assert "compare" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "train"),
        (["train", "--ptatern", "2:4"], "--pattern"),
        (
            ["train", "--steps", "many", "--pattern", "2:4"],
            "got 'many', expected INT, or none for the default",
        ),
        (["train", "--task-options", "layers"], "got 'layers', expected KEY=VALUE, as in layers=4"),
        (["train"], "Error: recipe 'step' needs a pattern, as in --pattern '2:4'"),
        (["train", "--pattern", "4:2"], "Error: pattern 4:2 keeps 4 of every 2 weights"),
        (
            ["train", "--pattern", "2:4", "--task", "digit"],
            "there is no task 'digit': did you mean 'digits'?",
        ),
        (["train", "--pattern", "2:4", "--refine", "1"], "Error: recipe 'step' takes no option 'refine'"),
        (["train", "--config", "no.toml"], "Error: no.toml: No such file or directory"),
        (["train", "--config", "bad.toml"], "Error: bad.toml: unknown key 'stpes'; did you mean 'steps'?"),
        (["compare", "--config", "bad.toml"], "Error: bad.toml: unknown key 'stpes'; did you mean 'steps'?"),
        (["compare", "--seeds", "1", "1"], "Error: --seeds [1, 1]: something is in it twice"),
        (["plan", "--pattern", "two:four"], "Error: cannot read pattern 'two:four'"),
        (["plan", "--pattern", "2:4", "--exclude", "conv9"], "Error: exclude names 'conv9'"),
        (["verify", "nothing.safetensors"], "nothing.safetensors"),
        (["report", "nothing"], "nothing"),
        (["pack", "nothing"], "nothing to read at 'nothing'"),
        (["export", "nothing", "--out", "e"], "nothing to read at 'nothing'"),
        (["export", "nothing"], "--out"),
        (["export", "nothing", "--out", "e", "--format"], "--format is dense, onnx, or both"),
        (["export", "nothing", "--out", "e", "--format", "tflite"], "tflite"),
        (["export", "nothing", "--out", "e", "--format", "onnx"], "'nothing' is no run folder"),
    ],
)
def test_wrong_usage_is_status_2_with_one_readable_message(arguments, message, nmstep, tmp_path):
    (tmp_path / "bad.toml").write_text("stpes = 3\n")
    status, out, err = nmstep(*arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in out + err


def test_debug_shows_the_traceback(nmstep, monkeypatch):
    monkeypatch.setenv("NMSTEP_DEBUG", "1")
    assert "Traceback" in nmstep("train")[2]


def test_train_writes_a_run_and_resumes_it(nmstep, small, tmp_path):
    status, out, err = nmstep("train", "--recipe", "sr-ste", "--refine", "0.5", *small)
    assert status == 0
    assert "N:M verified" in out
    assert "step 6/6 loss" in err
    folder = tmp_path / "runs" / "digits-sr-ste-1x16-s0"
    config = json.loads((folder / "config.json").read_text())
    assert (config["options"], config["exclude"], config["steps"]) == ({"refine": 0.5}, ["conv1"], 6)

    status, _, err = nmstep("train", "--recipe", "sr-ste", *small)
    assert status == 2
    assert "--resume" in err
    assert nmstep("train", "--out", folder, "--resume") == (0, out.replace("runs/", f"{tmp_path}/runs/"), "")
    status, _, err = nmstep("train", "--out", folder, "--resume", "--lr", "0.5")
    assert status == 2
    assert "lr is 0.001 there, 0.5 here" in err


def test_a_run_is_packed(nmstep, small, tmp_path):
    status, out, _ = nmstep("train", "--recipe", "ste", "--out", "r", *small)
    assert status == 0
    assert "Packed: r/packed.safetensors" in out
    assert "small and run dense: the file is smaller" in " ".join(out.split())
    before = (tmp_path / "r" / "packed.safetensors").read_bytes()
    status, out, _ = nmstep("pack", "r")
    assert status == 0
    assert "3 weights packed" in out.replace("\n", " ")
    assert "Read back: its weights are those of the checkpoint" in out
    assert max(map(len, out.splitlines())) <= 80
    assert (tmp_path / "r" / "packed.safetensors").read_bytes() == before
    assert nmstep("verify", "r/packed.safetensors")[0] == 0
    assert nmstep("verify", "r/packed.safetensors", "--pattern", "1:64")[0] == 1
    assert nmstep("pack", "r", "--dtype", "bfloat16", "--out", "narrow.safetensors")[0] == 0
    assert (tmp_path / "narrow.safetensors").stat().st_size < len(before)


RUN_TOML = """
recipe = "step"
pattern = "1:16"
exclude = ["conv1"]
steps = 6
batch_size = 8
[options]
switch = "at:0.5"
"""


def test_flags_override_the_file(nmstep, tmp_path):
    (tmp_path / "run.toml").write_text(RUN_TOML)
    assert nmstep("train", "--config", "run.toml", "--seed", "3", "--switch", "at:2", "--out", "r")[0] == 0
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["seed"], config["options"], config["batch_size"]) == (3, {"switch": "at:2"}, 8)
    assert json.loads((tmp_path / "r" / "result.json").read_text())["switch_step"] == 2


def test_interruption_says_how_to_go_on(nmstep, small, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "run", interrupt)
    status, _, err = nmstep("train", *small, "--out", "a b")
    assert status == 130
    assert "go on with: nmstep train --out 'a b' --resume" in err


def test_compare_prints_a_table_and_a_report_can_be_made(nmstep, small, tmp_path):
    arguments = ["compare", "--recipes", "dense", "ste", "--seeds", "0", "1", "--out", "c"]
    flags = ["--patterns" if flag == "--pattern" else flag for flag in small]
    status, out, _ = nmstep(*arguments, *flags)
    assert status == 0
    row = next(line for line in out.splitlines() if " ste " in line)
    assert "1:16" in row
    assert "±" in row
    assert "yes" in row
    assert max(map(len, out.splitlines())) <= 80

    pytest.importorskip("matplotlib")
    status, out, _ = nmstep("report", "c")
    assert status == 0
    assert (tmp_path / "c" / "report.html").stat().st_size > 1000
    assert "c/report.html" in out


def test_a_failed_run_of_a_comparison_is_status_1(nmstep, small):
    flags = ["--patterns" if flag == "--pattern" else flag for flag in small]
    status, _, err = nmstep(
        "compare", "--recipes", "dense", "--seeds", "0", "--lr", "1e30", "--out", "c", *flags
    )
    assert status == 1
    assert "dense-s0 failed: NaN or infinite gradient" in err


def test_plan_is_shown_and_written(nmstep, tmp_path):
    status, out, _ = nmstep("plan", "--pattern", "1:16", "--exclude", "conv1", "--out", "plan.json")
    assert status == 0
    assert "conv2.weight" in out
    assert max(map(len, out.splitlines())) <= 80
    plan = package.SparsityPlan.load(tmp_path / "plan.json")
    names = [entry.name for entry in plan.sparse]
    assert "conv2.weight" in names
    assert "conv1.weight" not in names

    arguments = [
        "train",
        "--recipe",
        "ste",
        "--plan-file",
        "plan.json",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--out",
        "r",
    ]
    assert nmstep(*arguments)[0] == 0
    assert json.loads((tmp_path / "r" / "plan.json").read_text()) == json.loads(
        (tmp_path / "plan.json").read_text()
    )


def test_task_options_reach_the_task(nmstep):
    status, out, _ = nmstep(
        "plan", "--task", "text", "--task-options", "layers=1", "width=32", "--pattern", "2:4"
    )
    assert status == 0
    assert "96x32" in out  # query, key and value of one block


@pytest.mark.parametrize(("weight", "status", "ok"), [([1.0, 0, 2, 0], 0, True), ([1.0, 3, 2, 0], 1, False)])
def test_verify_answers_with_its_status(weight, status, ok, nmstep):
    torch.save({"fc.weight": torch.tensor([weight])}, "w.pt")
    found, out, _ = nmstep("verify", "w.pt", "--pattern", "2:4")
    assert found == status
    assert (
        "fc.weight: 1 of 1 groups hold more than 2 non-zeros; first [0, 0:4] = (1, 3, 2, 0)" in out
    ) is not ok
    assert f"w.pt is {'' if ok else 'NOT '}N:M: " in out  # and no emoji made of ":M:"
    found, out, _ = nmstep("verify", "w.pt", "--pattern", "2:4", "--json")
    assert found == status
    assert json.loads(out)["ok"] is ok


def test_unreadable_weights_are_status_2(nmstep, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    status, _, err = nmstep("verify", "w.safetensors", "--pattern", "2:4")
    assert status == 2
    assert "w.safetensors" in err


def test_demo_runs_verifies_and_reports(nmstep, monkeypatch, tmp_path):
    def quick():
        return CompareConfig(
            recipes=("dense", "ste"),
            patterns=("1:16",),
            seeds=(0,),
            steps=4,
            batch_size=8,
            exclude=("conv1",),
        )

    monkeypatch.setattr(actions, "demo_config", quick)
    status, out, _ = nmstep("demo", "--jobs", "1", "--out", "d")
    assert status == 0
    assert "ste-1x16-s0/model.safetensors is 1:16" in out
    assert "Report: d/report.html" in out
    assert (tmp_path / "d" / "report.html").exists()


def test_the_installed_command_runs():
    done = subprocess.run(
        [sys.executable, "-m", "nmstep.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"nmstep {package.__version__}\n"


def test_an_unknown_task_is_the_first_thing_to_be_told(nmstep):
    status, _, err = nmstep("train", "--task", "digtis")
    assert status == 2
    assert "there is no task 'digtis'" in err
    assert "'digits'" in err
    assert "pattern" not in err


def test_resume_alone_asks_for_the_folder(nmstep):
    status, _, err = nmstep("train", "--resume")
    assert (status, "give its folder as --out" in err) == (2, True)


def test_an_unfinished_run_cannot_be_verified_yet(nmstep, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    status, _, err = nmstep("verify", str(tmp_path))
    assert (status, "is a run that is not finished" in " ".join(err.split())) == (2, True)


def test_doctor_says_which_kernels_work(nmstep):
    status, out, _ = nmstep("doctor")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if line[:1].strip()] == [
        "nmstep",
        "torch",
        "GPU",
        "kernels",
        "usable",
        "threads",
    ]
