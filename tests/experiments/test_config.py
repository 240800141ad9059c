import json
import re

import pytest

from nmstep import AutoSwitch, NMPattern, NormRatio, RelativeNorm, SwitchAt
from nmstep.experiments import CompareConfig, RecipeOptions, RunConfig, recipe_of
from nmstep.tasks import TaskDefaults

TOML = """
task = "text"
recipe = "step"
pattern = "2:4"
lr = 1
betas = [0.9, 0.99]
exclude = ["head"]

[task_options]
layers = 2
projection = "conv1d"

[options]
switch = "at:0.2"
eps_root = 1e-6
"""


def run_config(recipe, steps=1000, **options):
    return RunConfig(recipe=recipe, pattern="2:4", steps=steps, options=RecipeOptions(**options))


def test_toml_is_read_with_types_of_the_annotations(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    config = RunConfig.load(path)
    assert config == RunConfig(
        task="text",
        recipe="step",
        pattern="2:4",
        lr=1.0,
        betas=(0.9, 0.99),
        exclude=("head",),
        task_options={"layers": 2, "projection": "conv1d"},
        options=RecipeOptions(switch="at:0.2", eps_root=1e-6),
    )
    assert isinstance(config.lr, float)


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(recipe="dense"),
        run_config("step", clip=(0.2, 0.4), require_full_window=False, window=7),
        run_config("step", clip="off"),
        run_config("asp", start=0.5),
        run_config("asp", start=5),
        CompareConfig(recipes=("dense", "asp"), patterns=("1:4", "2:4"), options=RecipeOptions(start=3)),
    ],
)
def test_json_round_trip(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert type(config).load(path) == config


def test_keys_that_others_read_are_flat():
    values = run_config("step", switch="at:10").to_dict()
    assert (values["task"], values["recipe"], values["pattern"], values["seed"]) == (
        "digits",
        "step",
        "2:4",
        0,
    )
    assert values["options"] == {"switch": "at:10"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stpes": 3}, "run.toml: unknown key 'stpes'; did you mean 'steps'?"),
        ({"switch": "auto"}, "run.toml: unknown key 'switch'; it belongs in the table [options]"),
        ({"options": {"swich": "auto"}}, "run.toml: [options]: unknown key 'swich'; did you mean 'switch'?"),
        ({"recipe": "srste"}, "run.toml: recipe='srste': there is no such recipe; did you mean 'sr-ste'?"),
        ({"steps": "10"}, "run.toml: steps='10': expected an integer"),
        ({"steps": True}, "run.toml: steps=True: expected an integer"),
        ({"steps": 2.5}, "run.toml: steps=2.5: expected an integer"),
        ({"lr": "1e-3"}, "run.toml: lr='1e-3': expected a number"),
        ({"betas": [0.9]}, "run.toml: betas=[0.9]: expected a list of 2, each a number"),
        ({"include": "fc1"}, "run.toml: include='fc1': expected a list, each text"),
        ({"schedule": "cosin"}, "run.toml: schedule='cosin': expected one of 'constant', 'cosine'"),
        ({"options": {"correct_bias": 1}}, "correct_bias=1: expected true or false"),
        ({"options": 3}, "run.toml: options=3: expected a table"),
        ({"steps": 0}, "run.toml: steps=0: expected at least 1"),
        ({"lr": 0.0}, "run.toml: lr=0.0: expected a number above 0"),
        ({"betas": [0.9, 1.0]}, "run.toml: betas=(0.9, 1.0): expected two numbers from 0 up to"),
        ({"seed": -1}, "run.toml: seed=-1: expected at least 0"),
        ({"pattern": "4:2"}, "run.toml: pattern 4:2 keeps 4 of every 2 weights"),
        ({"pattern": None}, "recipe 'step' needs a pattern, as in pattern='2:4' (or a plan_file)"),
        ({"plan_file": "p.json"}, "plan_file says what becomes sparse; leave out pattern"),
        ({"recipe": "dense", "pattern": None, "exclude": ["a"]}, "but no pattern is given"),
    ],
)
def test_a_wrong_file_is_told_by_key_and_name(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig.from_dict({"recipe": "step", "pattern": "2:4"} | values, source="run.toml")


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            "sr-ste",
            {"switch": "auto"},
            "recipe 'sr-ste' takes no option 'switch'; it belongs to step, step-updated",
        ),
        ("step-updated", {"eps_root": 1.0}, "takes no option 'eps_root'; it belongs to step"),
        ("step", {"switch": "at:9", "threshold": 1.0}, "switch 'at:9' takes no option 'threshold'"),
        ("step", {"switch": "auto:3"}, "switch='auto:3': expected one of auto, auto-geometric"),
        ("step", {"switch": "at:soon"}, "switch='at:soon': expected at:STEP or at:SHARE"),
        (
            "step",
            {"switch": "at:1.5"},
            "switch=1.5: expected steps >= 0, or a share of all steps from 0.0 to 1.0",
        ),
        ("asp", {"start": -1}, "start=-1: expected steps >= 0"),
    ],
)
def test_wrong_options(recipe, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_config(recipe, **options)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "", "expected a .toml or .json file"),
        ("run.toml", "lr = = 3", "run.toml' is not valid TOML"),
        ("run.json", "{", "run.json' is not valid JSON"),
        ("run.json", "[1]", "run.json' holds list, expected a table"),
    ],
)
def test_unreadable_files(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig.load(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "switch"),
    [
        ({}, AutoSwitch()),
        ({"switch": "auto-geometric", "threshold": 1e-6}, AutoSwitch(mean="geometric", threshold=1e-6)),
        ({"clip": "off", "window": 9}, AutoSwitch(clip=None, window=9)),
        (
            {"clip": (0.2, 0.3), "require_full_window": False},
            AutoSwitch(clip=(0.2, 0.3), require_full_window=False),
        ),
        ({"switch": "relative-norm", "threshold": 0.25}, RelativeNorm(bound=0.25)),
        ({"switch": "norm-ratio", "window": 5}, NormRatio(window=5)),
        ({"switch": "at:300"}, SwitchAt(300)),
        ({"switch": "at:0.2"}, SwitchAt(200)),
    ],
)
def test_switches(options, switch):
    assert recipe_of(run_config("step", **options)).switch == switch


def test_recipes():
    assert recipe_of(RunConfig(recipe="dense", steps=9)).pattern is None
    assert recipe_of(run_config("asp", start=0.5)).switch == SwitchAt(500)
    assert recipe_of(run_config("sr-ste", refine=0.5)).refine == 0.5
    assert recipe_of(run_config("sr-ste")).refine == 2e-4
    assert recipe_of(run_config("step-updated")).freeze == "none"
    step = recipe_of(run_config("step", freeze="sparse", correct_bias=False, eps_root=0.5))
    assert (step.freeze, step.correct_bias, step.eps_root) == ("sparse", False, 0.5)
    decaying = recipe_of(run_config("decaying-mask", dense_steps=10, interval=0.05))
    assert decaying.switch == SwitchAt(10)
    stages = [decaying.schedule.pattern_at(NMPattern(1, 8), t).n for t in (0, 49, 50, 100, 150)]
    assert stages == [7, 7, 4, 2, 1]


def test_masks_that_would_start_after_the_end_are_an_error():
    with pytest.raises(
        ValueError, match="start=1000 puts the first mask at step 1000, but training ends at 1000"
    ):
        recipe_of(run_config("asp", start=1000))


def test_defaults_of_the_task_are_filled_in():
    defaults = TaskDefaults(steps=100, batch_size=8, lr=0.5, weight_decay=0.25)
    config = RunConfig(recipe="dense", lr=0.125, weight_decay=0.0).resolve(defaults)
    assert (config.steps, config.batch_size, config.lr, config.weight_decay) == (100, 8, 0.125, 0.0)
    assert (config.eval_every, config.checkpoint_every) == (10, 10)
    assert config.resolve(defaults) == config


def test_evaluations_and_checkpoints_are_shares_of_a_long_run():
    config = RunConfig(recipe="dense").resolve(
        TaskDefaults(steps=1000, batch_size=8, lr=0.5, weight_decay=0.0)
    )
    assert (config.eval_every, config.checkpoint_every) == (50, 100)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipes": ("dense", "stpe")}, "recipes: there is no 'stpe'"),
        ({"recipes": ()}, "recipes is empty"),
        ({"seeds": (1, 1)}, "seeds=[1, 1]: something is in it twice"),
        ({"jobs": 0}, "jobs=0: expected at least 1"),
        ({"recipes": ("dense", "ste"), "options": RecipeOptions(start=3)}, "takes the option 'start'"),
    ],
)
def test_wrong_comparisons(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CompareConfig(**values)


def test_a_comparison_gives_each_option_to_whom_it_belongs():
    config = CompareConfig(
        recipes=("dense", "asp", "step"),
        patterns=("1:4",),
        seeds=(3,),
        exclude=("fc2",),
        options=RecipeOptions(start=7, threshold=0.5),
    )
    runs = dict(config.runs())
    assert list(runs) == ["dense-s3", "asp-1x4-s3", "step-1x4-s3"]
    assert [run.options.given for run in runs.values()] == [(), ("start",), ("threshold",)]
    assert [run.pattern for run in runs.values()] == [None, "1:4", "1:4"]
