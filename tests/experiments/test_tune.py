import dataclasses
import importlib
import json
import math

import pytest

from nmstep.experiments import Outcome, RecipeOptions, TuneConfig, tune
from nmstep.experiments.training import Training
from nmstep.tasks import TaskDefaults

DEFAULTS = TaskDefaults(steps=600, batch_size=64, lr=1e-3, weight_decay=0.0, warmup=30)


@pytest.fixture
def config():
    return TuneConfig(
        lrs=(1e-2, 1e-5),
        batch_sizes=(8, 16),
        seeds=(0, 1),
        steps=2,  # of the 64 examples of the task's own batch
        pattern="1:16",
        exclude=("conv1",),
        device="cpu",
        options=RecipeOptions(switch="at:0.5"),
    )


@pytest.fixture
def pretend(monkeypatch):
    """Lets runs end at given accuracies, by recipe, learning rate and batch size, without training."""
    done = []

    def put(scores, higher_is_better=True):
        def run_jobs(jobs, *, processes, progress):  # noqa: ARG001
            outcomes = {}
            for job in jobs:
                done.append(job.name)
                c = job.config
                score = scores.get((c.recipe, c.lr, c.batch_size), 0.0)
                score = score[c.seed] if isinstance(score, tuple) else score
                result = {
                    "metric": "accuracy",
                    "higher_is_better": higher_is_better,
                    "final": {"accuracy": score},
                }
                failed = Outcome(error="NaN in fc1")
                outcomes[job.name] = failed if score is None else Outcome(result=result)
            return outcomes

        monkeypatch.setattr(importlib.import_module("nmstep.experiments.tune"), "run_jobs", run_jobs)
        return done

    return put


def dense(lr, size):
    return ("dense", lr, size)


@pytest.mark.parametrize(
    ("scores", "higher", "winner"),
    [
        ({dense(1e-5, 8): 90.0}, True, (1e-5, 8)),
        ({dense(1e-2, 8): (99.0, 81.0), dense(1e-5, 16): (92.0, 89.0)}, True, (1e-5, 16)),  # 90.0 and 90.5
        ({dense(1e-2, 16): 90.0, dense(1e-5, 8): 90.0}, True, (1e-2, 16)),
        ({dense(1e-2, 8): (99.0, None), dense(1e-5, 8): 1.0}, True, (1e-5, 8)),
        ({dense(1e-2, 8): (99.0, math.nan), dense(1e-5, 8): 1.0}, True, (1e-5, 8)),
        ({dense(1e-2, 8): math.inf, dense(1e-5, 8): 1.0}, True, (1e-5, 8)),
        (
            {dense(1e-2, 8): 3.0, dense(1e-2, 16): 2.0, dense(1e-5, 8): 4.0, dense(1e-5, 16): 2.0},
            False,
            (1e-2, 16),
        ),
        ({dense(1e-2, 8): math.nan, dense(1e-2, 16): None, dense(1e-5, 16): 5.0}, False, (1e-5, 8)),
    ],
    ids=["best", "mean", "tie", "failed", "nan", "inf", "lower is better", "zero is lowest"],
)
def test_the_best_mean_wins(config, pretend, tmp_path, scores, higher, winner):
    pretend(scores, higher)
    found = tune(config, tmp_path)
    assert (found.winner.lr, found.winner.batch_size) == winner
    written = json.loads((tmp_path / "winner.json").read_text())
    assert (written["lr"], written["batch_size"]) == winner
    assert (found.config.lr, found.config.batch_size, found.config.seed) == (*winner, 0)


def test_step_takes_the_winner_over(config, pretend, tmp_path):
    done = pretend({dense(1e-5, 16): 90.0})
    found = tune(config, tmp_path)
    assert done == [
        *(f"dense-lr{lr}-b{size}-s{seed}" for lr in ("0.01", "1e-05") for size in (8, 16) for seed in (0, 1)),
        "step-1x16-lr1e-05-b16-s0",
        "step-1x16-lr1e-05-b16-s1",
    ]
    assert list(found.then) == ["step"]
    assert list(found.then["step"]) == done[-2:]
    assert list(found.outcomes) == done[:-2]


def test_if_all_failed_that_is_an_error_and_nothing_follows(config, pretend, tmp_path):
    done = pretend(dict.fromkeys([dense(lr, size) for lr in (1e-2, 1e-5) for size in (8, 16)]))
    with pytest.raises(
        RuntimeError, match=r"no pair .* finite .*; the first: dense-lr0.01-b8-s0: NaN in fc1"
    ):
        tune(config, tmp_path)
    assert len(done) == 8
    assert not (tmp_path / "winner.json").exists()


def test_if_nothing_is_finite_that_is_an_error(config, pretend, tmp_path):
    pretend({dense(lr, size): math.nan for lr in (1e-2, 1e-5) for size in (8, 16)})
    with pytest.raises(RuntimeError, match="no pair"):
        tune(config, tmp_path)


def test_winner_json_is_json_and_holds_the_grid(config, pretend, tmp_path):
    pretend({dense(1e-2, 8): (90.0, 92.0), dense(1e-5, 8): (math.nan, 3.0), dense(1e-5, 16): (None, 1.0)})
    tune(config, tmp_path)
    written = json.loads((tmp_path / "winner.json").read_text(), parse_constant=pytest.fail)
    points = {(point["lr"], point["batch_size"]): point for point in written["points"]}
    assert points[1e-2, 8]["mean"] == 91.0
    assert points[1e-2, 8]["std"] == pytest.approx(math.sqrt(2))
    assert (points[1e-5, 8]["values"], points[1e-5, 8]["mean"]) == ([None, 3.0], None)
    assert (points[1e-5, 16]["values"], points[1e-5, 16]["failed"]) == ([1.0], 1)
    assert written["config"]["recipe"] == "dense"


@pytest.mark.parametrize(
    ("size", "given", "steps", "warmup"),
    [
        (64, {}, 600, 30),
        (32, {}, 1200, 60),
        (128, {}, 300, 15),
        (32, {"steps": 10, "warmup": 3}, 20, 6),
        (1024, {"steps": 3}, 1, 2),
    ],
)
def test_every_pair_sees_equally_many_examples(size, given, steps, warmup):
    config = TuneConfig(lrs=(1e-3,), pattern="2:4", seeds=(4,), **given)
    ((name, run),) = config.runs("step", 1e-3, size, DEFAULTS)
    assert (run.steps, run.warmup, run.batch_size, run.seed) == (steps, warmup, size, 4)
    assert name == f"step-2x4-lr0.001-b{size}-s4"


def test_without_batch_sizes_there_is_the_tasks_own():
    config = TuneConfig(lrs=(1e-3, 1e-4), pattern="2:4")
    assert config.grid(DEFAULTS) == ((1e-3, 64), (1e-4, 64))


def test_runs_are_ordinary_and_not_repeated(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, lrs=(1e-3,), batch_sizes=(16, 32), seeds=(0,))
    first = tune(config, tmp_path)
    names = ["dense-lr0.001-b16-s0", "dense-lr0.001-b32-s0"]
    assert [first.outcomes[name].result["steps"] for name in names] == [8, 4]
    (followed,) = first.then["step"].values()
    assert followed.result["switch_step"] == first.winner.steps // 2
    assert TuneConfig.load(tmp_path / "tune.json") == config
    for name in (*names, *first.then["step"]):
        assert (tmp_path / name / "model.safetensors").exists()
    monkeypatch.setattr(Training, "train_step", None)
    assert tune(config, tmp_path) == first


def test_a_folder_of_another_search_is_refused_before_anything_runs(config, tmp_path, monkeypatch):
    small = dataclasses.replace(
        config, lrs=(1e-3,), batch_sizes=(64,), seeds=(0,), then=(), options=RecipeOptions()
    )
    tune(small, tmp_path)
    before = (tmp_path / "tune.json").read_text()
    monkeypatch.setattr(Training, "train_step", None)
    with pytest.raises(ValueError, match=r"dense-lr0.001-b64-s0' holds a run of another .*: weight_decay is"):
        tune(dataclasses.replace(small, weight_decay=0.5, lrs=(1e-2, 1e-3)), tmp_path)
    assert (tmp_path / "tune.json").read_text() == before


def test_a_follower_that_cannot_run_is_refused_before_anything_runs(config, tmp_path):
    with pytest.raises(ValueError, match="can become sparse"):
        tune(dataclasses.replace(config, pattern="3:7", exclude=()), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e-3}, "lr=0.001: the search chooses it; give the values to try as lrs"),
        ({"batch_size": 8}, "batch_size=8: the search chooses it; give the values to try as batch_sizes"),
        ({"lrs": ()}, "lrs is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"lrs": (1e-3, 0.0)}, r"lrs=\[0.001, 0.0\]: expected numbers above 0"),
        ({"lrs": (math.nan,)}, r"lrs=\[nan\]: expected numbers above 0"),
        ({"lrs": (1e-3, 1e-3)}, "lrs=.*twice"),
        ({"batch_sizes": (8, 0)}, r"batch_sizes=\[8, 0\]: expected at least 1"),
        ({"seeds": (-1,)}, r"seeds=\[-1\]: expected at least 0"),
        ({"seeds": (0.5,)}, r"seeds=\(0.5,\): expected a list, each an integer"),
        ({"then": ("stepp",)}, "no recipe 'stepp'; did you mean 'step'"),
        ({"then": ("dense",)}, r"then=\['dense'\]: 'dense' is the baseline"),
        ({"pattern": None}, "recipe 'step' needs a pattern"),
        ({"options": RecipeOptions(refine=1.0)}, "none of the recipes dense, step takes the option 'refine'"),
        ({"jobs": 0}, "jobs=0: expected at least 1"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_a_sparse_baseline_has_its_own_options(config):
    config = dataclasses.replace(
        config, recipe="sr-ste", options=RecipeOptions(refine=0.1, switch="at:0.5"), then=("step", "dense")
    )
    options = {
        recipe: next(config.runs(recipe, 1e-3, 8, DEFAULTS))[1].options.given
        for recipe in ("sr-ste", "step", "dense")
    }
    assert options == {"sr-ste": ("refine",), "step": ("switch",), "dense": ()}
