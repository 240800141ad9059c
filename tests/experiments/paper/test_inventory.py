from dataclasses import replace

import pytest

from nmstep.experiments.paper import STUDIES, Scope, check_scope, run_name, take_inventory, workload_names


@pytest.mark.parametrize("scale", ["cpu", "full"])
@pytest.mark.parametrize("name", [name for name in STUDIES if name != "table5"])
def test_the_workloads_together_are_the_study(name, scale):
    """A workload that is missing among the names could not be chosen."""

    def parts(only):
        found = STUDIES[name](Scope(scale=scale, only=only))
        return {repr(part) for part in (*found.cells, *found.before)}

    names = workload_names(name, Scope(scale=scale))
    assert names
    assert set().union(*(parts((workload,)) for workload in names)) == parts(None)


@pytest.mark.parametrize(
    ("name", "scope", "message"),
    [
        ("fig44", Scope(), "no table or figure 'fig44': did you mean 'fig4'"),
        (
            "fig2",
            Scope(only=("digits", "digit")),
            "fig2 at scale cpu has no workload 'digit': did you mean 'digits'.*cifar10-resnet20",
        ),
        ("fig4", Scope(only=("digits",)), "no workload 'digits': choose from cifar10-resnet20"),
        ("table5", Scope(only=("digits",)), "table5 has no workloads to choose from"),
        ("fig2", Scope(seeds=(1, 2, 1)), r"seeds=\[1, 2, 1\]: something is in it twice"),
        ("fig2", Scope(seeds=()), r"seeds=\[\]: there is nothing to run"),
    ],
)
def test_a_scope_that_does_not_fit_is_refused(name, scope, message):
    with pytest.raises(ValueError, match=message):
        check_scope(name, scope)


@pytest.mark.usefixtures("tiny")
def test_states_are_read_from_the_folders(tmp_path):
    names = list(take_inventory("fig4", tmp_path, scope=Scope(seeds=(0, 1))).states)
    for name, files in ((names[0], ("config.json", "result.json")), (names[3], ("config.json",))):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "runs" / name / file).write_text("{}")
    inventory = take_inventory("fig4", tmp_path, scope=Scope(seeds=(0, 1)))
    assert list(inventory.states.values()) == ["done", "missing", "missing", "started"]
    assert [inventory.count(state) for state in ("done", "started", "missing")] == [1, 1, 2]
    dense, ste = inventory.study.cells
    assert inventory.of(dense) == ("done", "missing")
    assert inventory.of(ste) == ("missing", "started")


def test_preparations_are_counted_once(define, workload, tmp_path):
    """The dense run is a preparation and a cell's run too."""

    def parts(scope):
        dense = workload(scope).run("dense", seed=0)
        return {"before": (dense,), "cells": (workload(scope).cell("dense", "dense"),)}

    define("table3", parts)
    scope = Scope(store=tmp_path / "runs")
    inventory = take_inventory("table3", tmp_path, scope=scope)
    dense = workload(scope).run("dense", seed=0)
    assert list(inventory.before) == [run_name(dense)]
    assert list(inventory.runs) == [run_name(replace(dense, seed=1))]
