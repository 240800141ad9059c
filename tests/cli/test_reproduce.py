import json

import pytest

from nmstep.cli import paper_actions
from nmstep.experiments.paper import STUDIES, Study, Workload, run_name
from nmstep.experiments.training import Training


def tiny(scope, name, *rows):
    """A study of four steps a run, dense and more."""
    settings = {"task": "digits", "steps": 4, "batch_size": 8, "device": "cpu", "threads": 1}
    workload = Workload(name="digits", title="Digits", settings=settings, seeds=scope.seeds or (0, 1))
    cells = [
        workload.cell(row, row.lower(), "1:16" if row == "STE" else None, column="Digits") for row in rows
    ]
    if scope.only is not None and "digits" not in scope.only:
        cells = []
    return Study(name=name, title="Tiny runs", claim="It runs.", view="scores", cells=tuple(cells))


@pytest.fixture(autouse=True)
def studies(monkeypatch):
    """No study but two tiny ones, of which the first is part of the second."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    for name in [*STUDIES]:
        monkeypatch.delitem(STUDIES, name)
    monkeypatch.setitem(STUDIES, "table2", lambda scope: tiny(scope, "table2", "dense"))
    monkeypatch.setitem(STUDIES, "fig4", lambda scope: tiny(scope, "fig4", "dense", "STE"))


def test_the_runs_are_done_and_shown(nmstep, tmp_path):
    status, out, err = nmstep("reproduce", "fig4", "--out", "o")
    assert status == 0
    assert "4 runs, 0 done, 1 at a time, in o/runs" in out
    assert "±" in out
    assert "Page: o/fig4/index.md" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "Warning" in err  # that conv1 stays dense
    assert (tmp_path / "o" / "fig4" / "index.md").exists()
    assert len(list((tmp_path / "o" / "runs").glob("*/result.json"))) == 4

    status, out, err = nmstep("reproduce", "fig4", "--out", "o")
    assert status == 0
    assert "4 runs, 4 done" in out
    assert "step" not in err  # nothing was run again


def test_a_dry_run_shows_what_there_is_and_runs_nothing(nmstep, tmp_path, monkeypatch):
    assert nmstep("reproduce", "table2", "--seeds", "1", "--out", "o")[0] == 0
    written = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(paper_actions, "reproduce", None)
    status, out, _ = nmstep("reproduce", "fig4", "--seeds", "1", "2", "--out", "o", "--dry-run")
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["Digits", "dense", "1", "2", "1/2"] in rows
    assert ["Digits", "STE", "1", "2", "0/2"] in rows
    assert "fig4: 4 runs, 1 done, in o/runs" in out
    status, out, _ = nmstep("reproduce", "all", "--seeds", "1", "2", "--out", "o", "--dry-run")
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["table2", "Tiny", "runs", "2", "1", "1"] in rows
    assert ["fig4", "Tiny", "runs", "4", "1", "3"] in rows
    assert ["all", "each", "run", "once", "4", "1", "3"] in rows
    assert sorted(tmp_path.rglob("*")) == written


def test_all_does_each_and_goes_to_the_folder_of_the_scale(nmstep, tmp_path):
    status, out, _ = nmstep("reproduce", "all", "--seeds", "0", "--only", "digits")
    assert status == 0
    assert "table2: Tiny runs\n1 runs, 0 done" in out
    assert "fig4: Tiny runs\n2 runs, 1 done" in out
    for name in ("table2", "fig4"):
        assert (tmp_path / "runs" / "paper-cpu" / name / "index.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel2"], "Error: there is no table or figure 'tabel2': did you mean 'table2'?"),
        (["al"], "did you mean 'all'?"),
        (["fig4", "--only", "digit"], "fig4 at scale cpu has no workload 'digit': did you mean 'digits'?"),
        (["fig4", "--only", "cifar"], "has no workload 'cifar': choose from digits"),
        (["all", "--only", "digit"], "no table or figure has a workload 'digit' at scale cpu: did you mean"),
        (["fig4", "--seeds", "one"], "Error parsing --seeds: got 'one', expected INT ..."),
        (["fig4", "--seeds", "0.5"], "Error parsing --seeds: got '0.5', expected INT ..."),
        (["fig4", "--seeds"], "Error parsing --seeds: got '', expected INT ..."),
        (["all", "--seeds", "1", "1"], "Error: --seeds [1, 1]: something is in it twice"),
        (["fig4", "--seeds", "-1"], "Error: --seed -1: expected at least 0"),
        (["fig4", "--scale", "huge"], "invalid choice 'huge'"),
    ],
)
def test_wrong_usage_is_status_2_with_one_readable_message(arguments, message, nmstep, tmp_path):
    status, out, err = nmstep("reproduce", *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_interruption_says_how_to_go_on(nmstep, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "train_step", interrupt)
    arguments = ["fig4", "--out", "a b", "--seeds", "0", "1", "--only", "digits"]
    status, _, err = nmstep("reproduce", *arguments)
    assert status == 130
    again = "nmstep reproduce fig4 --scale cpu --seeds 0 1 --only digits --out 'a b' --jobs 1"
    assert f"Interrupted; what is finished stays. Go on with: {again}\n" in err


def test_a_failed_run_is_named_and_is_status_1(nmstep, monkeypatch):
    train_step = Training.train_step

    def fail(self):
        if self.config.recipe == "ste":
            raise FloatingPointError("NaN in fc1")
        return train_step(self)

    monkeypatch.setattr(Training, "train_step", fail)
    status, out, err = nmstep("reproduce", "fig4", "--seeds", "3", "--out", "o")
    assert status == 1
    (config,) = tiny_configs("ste", 3)
    assert f"Error: {run_name(config)} failed: NaN in fc1" in err
    assert "Page: o/fig4/index.md" in out


def tiny_configs(recipe, seed):
    from nmstep.experiments.paper import Scope

    runs = tiny(Scope(seeds=(seed,)), "fig4", "dense", "STE").runs()
    return [config for config in runs if config.recipe == recipe]


def test_missing_data_of_one_do_not_stop_the_others(nmstep, monkeypatch):
    def lost(scope):
        workload = Workload(
            name="digits", title="CIFAR-10", settings={"task": "cifar10", "data": "nowhere"}, seeds=(0,)
        )
        cells = (workload.cell("dense", "dense"),) if scope.only is None else ()
        return Study(name="table2", title="No data", claim="It fails.", view="scores", cells=cells)

    monkeypatch.setitem(STUDIES, "table2", lost)
    status, out, err = nmstep("reproduce", "all", "--seeds", "0", "--out", "o")
    assert status == 1
    assert "Error: table2: " in err
    assert "nowhere" in err
    assert "Page: o/fig4/index.md" in out
    assert nmstep("reproduce", "table2", "--out", "o")[0] == 2


def test_the_folders_json_is_the_scopes(nmstep, tmp_path):
    nmstep("reproduce", "table2", "--seeds", "7", "--out", "o", "--scale", "full")
    values = json.loads((tmp_path / "o" / "table2" / "study.json").read_text())
    assert values["scale"] == "full"
    assert [cell["seeds"] for cell in values["cells"]] == [[7]]
