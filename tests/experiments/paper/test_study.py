import dataclasses
import json

import pytest

from nmstep.experiments import RecipeOptions, RunConfig
from nmstep.experiments.paper import STUDIES, Cell, Scope, Study, run_name, study
from nmstep.experiments.paper.study import Drift, LayerSearch

STEP = RunConfig(recipe="step", pattern="1:8")


def test_a_name_says_task_recipe_pattern_and_seed():
    name = run_name(RunConfig(task="glue/rte", recipe="sr-ste", pattern="2:4", seed=7))
    assert name.startswith("glue-rte-sr-ste-2x4-")
    assert name.endswith("-s7")


@pytest.mark.parametrize(
    "change", [{"data": "elsewhere"}, {"threads": 3}, {"device": "cpu"}, {"checkpoint_every": 7}]
)
def test_what_changes_no_result_changes_no_name(change):
    assert run_name(dataclasses.replace(STEP, **change)) == run_name(STEP)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"steps": 100},
        {"task_options": {"model": "other"}},
        {"options": RecipeOptions(window=50)},
        {"init": "runs/a"},
        {"include": ("fc1",)},
    ],
)
def test_what_changes_a_result_changes_the_name(change):
    assert run_name(dataclasses.replace(STEP, **change)) != run_name(STEP)


def test_a_default_that_is_spelled_out_is_the_same_run():
    assert run_name(dataclasses.replace(STEP, optimizer="adamw", eps=1e-8)) == run_name(STEP)


def test_files_count_by_their_own_name():
    here, there, other = (dataclasses.replace(STEP, init=init) for init in ("a/x", "b/c/x", "a/y"))
    assert run_name(here) == run_name(there) != run_name(other)


def test_first_seeds_come_first_and_shared_runs_once():
    dense = Cell(row="dense", column="a", config=RunConfig(recipe="dense"), seeds=(0, 1))
    again = dataclasses.replace(dense, column="b")
    step = Cell(row="STEP", column="a", config=STEP, seeds=(0, 1, 2))
    found = Study(name="n", title="t", claim="c", view="scores", cells=(dense, again, step))
    assert [(config.recipe, config.seed) for config in found.runs()] == [
        ("dense", 0),
        ("step", 0),
        ("dense", 1),
        ("step", 1),
        ("step", 2),
    ]


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_no_two_runs_of_the_paper_share_a_name(scale):
    """Three bytes of digest could collide; the folder would then refuse one of the runs."""
    left_out = {"data": None, "threads": None, "device": None, "checkpoint_every": None}
    seen = {}
    for name in STUDIES:
        found = study(name, Scope(scale=scale))
        preparations = [item for item in found.before if isinstance(item, RunConfig)]
        for config in (*preparations, *found.runs()):
            known = seen.setdefault(run_name(config), config)
            assert dataclasses.replace(known, **left_out) == dataclasses.replace(config, **left_out)
    assert len(seen) > 100


@pytest.mark.parametrize("scale", ["cpu", "full"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_json(name, scale):
    found = study(name, Scope(scale=scale, seeds=(3,)))
    values = json.loads(json.dumps(found.to_dict()))
    assert values["name"] == name
    assert all(cell["seeds"] == [3] and len(cell["runs"]) == 1 for cell in values["cells"])
    files = [item.file for item in found.before if isinstance(item, (LayerSearch, Drift))]
    assert values["files"] == files
    assert len(set(files)) == len(files)


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(ValueError, match="no table or figure 'tabel3': did you mean 'table3'"):
        study("tabel3", Scope())
