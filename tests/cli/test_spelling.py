import dataclasses
import shlex

import pytest

from nmstep.cli import main
from nmstep.cli.commands import values_of
from nmstep.cli.spelling import train_command
from nmstep.experiments import RecipeOptions, RunConfig

FULL = RunConfig(
    task="cifar10",
    data="my data/cifar",
    task_options={"model": "resnet20", "test_subset": 5000, "augment": False, "path": None},
    steps=100,
    batch_size=32,
    lr=5e-05,
    weight_decay=0.1,
    betas=(0.9, 0.98),
    eps=1e-6,
    schedule="cosine",
    warmup=0,
    clip_norm=1.0,
    precision="bf16",
    checkpoint_every=0,
    on_nonfinite="skip",
    include=("layer*", "fc"),
    exclude=("conv1",),
    threads=1,
    recipe="step",
    pattern="1:8",
    seed=3,
    options=RecipeOptions(switch="auto", clip=(0.1, 0.2), window=50, require_full_window=False),
)


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        RunConfig(recipe="dense"),
        RunConfig(pattern="2:4", options=RecipeOptions(clip="off", correct_bias=True)),
        RunConfig(recipe="ste", plan_file="a plan.json", optimizer="sgd", momentum=0.5, init="runs/a"),
        RunConfig(recipe="asp", pattern="2:4", options=RecipeOptions(start=0.5)),
        RunConfig(recipe="asp", pattern="2:4", options=RecipeOptions(start=5)),
    ],
)
def test_the_command_line_gives_the_configuration_back(config):
    words = shlex.split(train_command(config))
    assert words[:2] == ["nmstep", "train"]
    command = main._parse(words[1:])
    assert RunConfig(**values_of(command.run)) == config


def test_what_is_at_its_default_is_left_out():
    assert train_command(dataclasses.replace(FULL, data=None)).count("--data") == 0
    assert train_command(RunConfig(pattern="2:4")) == "nmstep train --task digits --pattern 2:4"
