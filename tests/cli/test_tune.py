import json
import shlex

import pytest

from nmstep.cli import tune_actions
from nmstep.experiments import RunConfig, TuneConfig

SHORT = ["--steps", "3", "--then", "--out", "o"]  # nothing after the search


@pytest.fixture
def small():
    """A grid of two by two, one seed, of two and four steps."""
    text = "--lrs 1e-2 1e-4 --batch-sizes 32 64 --seeds 0 --steps 2 --pattern 1:16 --exclude conv1"
    return [*text.split(), "--switch", "at:0.5", "--device", "cpu", "--out", "o"]


def test_the_grid_is_shown_and_the_winner_marked(nmstep, small, tmp_path):
    status, out, _ = nmstep("tune", *small)
    assert status == 0
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("nmstep train"))
    found = json.loads((tmp_path / "o" / "winner.json").read_text())
    best = max(found["points"], key=lambda point: point["mean"])
    assert (found["lr"], found["batch_size"]) == (best["lr"], best["batch_size"])
    rows = {
        line.split()[0]: line.split()[1:] for line in out.splitlines() if line.lstrip().startswith(("0", "1"))
    }
    starred = [(lr, row[row.index("*") - 1]) for lr, row in rows.items() if "*" in row]
    assert starred == [(f"{best['lr']:g}", f"{best['mean']:.2f}")]
    assert f"dense is best at lr {best['lr']:g}, batch size {best['batch_size']}:" in out
    assert "step 1:16 with the same: accuracy " in out
    assert f"masks from step {best['steps'] // 2}" in out

    again, repeated, err = nmstep("tune", "--config", "o/tune.json", "--out", "o")
    assert (again, repeated, err) == (0, out, "")


def test_the_command_shown_is_the_winners_run(nmstep, small, tmp_path):
    _, out, _ = nmstep("tune", *small)
    command = next(line for line in out.splitlines() if line.startswith("nmstep train"))
    assert nmstep(*shlex.split(command)[1:], "--out", "again")[0] == 0
    found = json.loads((tmp_path / "o" / "winner.json").read_text())
    name = f"dense-lr{found['lr']!r}-b{found['batch_size']}-s0"
    assert (tmp_path / "again" / "config.json").read_text() == (
        tmp_path / "o" / name / "config.json"
    ).read_text()
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (
        tmp_path / "o" / name / "metrics.jsonl"
    ).read_bytes()


def test_a_pair_that_diverges_loses_and_is_told_once(nmstep):
    status, out, err = nmstep("tune", "--lrs", "1e30", "1e-3", "--seeds", "0", "1", *SHORT)
    assert status == 0
    assert "2 failed" in out
    assert "dense is best at lr 0.001" in out
    assert err.count("failed and cannot win: NaN or infinite gradient") == 1
    assert "Warning: dense-lr1e+30-b64-s0 and 1 more failed" in err


def test_if_all_diverge_the_status_is_2(nmstep):
    status, _, err = nmstep("tune", "--lrs", "1e30", "--seeds", "0", *SHORT)
    assert status == 2
    assert "Error: no pair of learning rate and batch size ended at a finite number" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Error: lrs is empty: give the learning rates to try"),
        (["--lr", "1e-3"], "--lrs FLOAT ..."),
        (["--lrs", "fast"], "Error parsing --lrs: got 'fast', expected a number"),
        (["--lrs", "1e-3", "--seeds", "x"], "Error parsing --seeds: got 'x', expected an integer"),
        (["--lrs", "1e-3"], "Error: recipe 'step' needs a pattern"),
        (["--lrs", "1e-3", "--pattern", "2:4", "--then", "stepp"], "invalid choice 'stepp'"),
        (["--config", "bad.toml"], "Error: bad.toml: lr=0.1: the search chooses it"),
    ],
)
def test_wrong_usage_is_status_2_with_one_readable_message(arguments, message, nmstep, tmp_path):
    (tmp_path / "bad.toml").write_text("lr = 0.1\nlrs = [0.1]\nthen = []\n")
    status, out, err = nmstep("tune", *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("begun", [True, False])
def test_interruption_says_how_to_go_on_if_there_is_something(nmstep, small, monkeypatch, tmp_path, begun):
    def interrupt(config, folder, **_):
        if begun:
            folder.mkdir()
            (folder / "tune.json").write_text(json.dumps(config.to_dict()))
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_actions, "tune", interrupt)
    status, _, err = nmstep("tune", *small)
    assert status == 130
    assert ("Go on with: nmstep tune --config o/tune.json --out o" in err) is begun
    if begun:
        assert TuneConfig.load(tmp_path / "o" / "tune.json").lrs == (1e-2, 1e-4)


def test_the_default_of_steps_is_that_of_train():
    """Its help is another, but the field is the same."""
    assert TuneConfig(lrs=(1.0,), then=()).steps == RunConfig(recipe="dense").steps
