"""The paper's figures, each as the runs that it is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nmstep.experiments.paper.images import images
from nmstep.experiments.paper.study import Cell, Study
from nmstep.experiments.paper.translation import translation
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = ["fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8"]

# Where SR-STE loses something on small data too; at 1:8 it loses nothing on digits.
_AGGRESSIVE = "1:16"
_RECIPES = (("dense", "dense"), ("ASP", "asp"), ("SR-STE", "sr-ste"), ("STEP", "step"))


def fig1(scope: Scope) -> Study:
    """Returns dense and SR-STE training under momentum SGD and under Adam."""
    cells = []
    for workload in scope.chosen(images(scope)):
        for optimizer, label in (("sgd", "momentum SGD"), ("adamw", "Adam")):
            rate = {"lr": 0.1} if optimizer == "sgd" else {}
            for row, recipe in (("dense", "dense"), ("SR-STE", "sr-ste")):
                pattern = None if recipe == "dense" else _AGGRESSIVE
                column = f"{workload.title}, {label}"
                cells.append(workload.cell(row, recipe, pattern, column=column, optimizer=optimizer, **rate))
    return Study(
        name="fig1",
        title=f"Dense and SR-STE at {_AGGRESSIVE} under momentum SGD and under Adam",
        claim="SR-STE comes close to dense under momentum SGD and loses clearly more under Adam.",
        view="curves",
        cells=tuple(cells),
    )


def fig2(scope: Scope) -> Study:
    """Returns the norm of the variance in dense and in SR-STE training."""
    cells = []
    for workload in scope.chosen(images(scope)):
        cells.append(workload.cell("dense", "dense", column=workload.title))
        cells += [
            workload.cell(f"SR-STE {pattern}", "sr-ste", pattern, column=workload.title)
            for pattern in workload.patterns
        ]
    return Study(
        name="fig2",
        title="Norm of Adam's variance, dense and under masks",
        claim="Masks from the first step on change the variance that Adam ends up with.",
        view="variance",
        cells=tuple(cells),
        facts={"column": "v_norm1"},
    )


def fig3(scope: Scope) -> Study:
    """Returns the change of the variance from step to step in dense training, and where AutoSwitch fires."""
    cells = []
    for workload in scope.chosen(images(scope)):
        cells.append(workload.cell("dense", "dense", column=workload.title))
        cells.append(workload.cell("STEP", "step", _AGGRESSIVE, column=workload.title))
    return Study(
        name="fig3",
        title="Change of Adam's variance per step",
        claim="The variance settles early: its change per step falls by orders of magnitude, then stays low.",
        view="variance",
        cells=tuple(cells),
        facts={"column": "z"},
    )


def fig4(scope: Scope) -> Study:
    """Returns ASP, SR-STE and STEP at several patterns on the first data set."""
    return _patterns("fig4", [w for w in scope.chosen(images(scope)) if w.settings["task"] == "cifar10"])


def fig5(scope: Scope) -> Study:
    """Returns ASP, SR-STE and STEP at several patterns on the second data set."""
    return _patterns("fig5", [w for w in scope.chosen(images(scope)) if w.settings["task"] != "cifar10"])


def _patterns(name: str, workloads: list[Workload]) -> Study:
    return Study(
        name=name,
        title="ASP, SR-STE and STEP as the pattern becomes sparser",
        claim="STEP stays closest to dense at every pattern, the more clearly the sparser it is.",
        view="curves",
        cells=tuple(cell for workload in workloads for cell in recipe_cells(workload)),
        notes=("In a dense phase the curve shows the model under masks.",),
    )


def recipe_cells(
    workload: Workload,
    rows: Sequence[tuple[str, str]] = _RECIPES,
    *,
    patterns: Sequence[str] | None = None,
    **changes: Any,
) -> list[Cell]:
    """Returns recipes of a workload at each of its patterns.

    Args:
        workload: the task.
        rows: label and recipe of each row; a dense one is repeated at each pattern, for comparison.
        patterns: in place of the workload's own.
        **changes: keys of the configuration.
    """
    return [
        workload.cell(
            row,
            recipe,
            None if recipe == "dense" else pattern,
            column=f"{workload.title}, {pattern}",
            **changes,
        )
        for pattern in patterns or workload.patterns
        for row, recipe in rows
    ]


def fig6(scope: Scope) -> Study:
    """Returns Decaying Mask with and without a dense phase before it, in translation."""
    cells: list[Cell] = []
    for workload in scope.chosen([translation(scope)]):
        cells += recipe_cells(workload, (("dense", "dense"), ("Decaying Mask", "decaying-mask")))
        later = workload.option("decaying-mask", dense_steps=0.2)
        cells += recipe_cells(workload, (("Decaying Mask, dense phase", "decaying-mask"),), options=later)
        cells += recipe_cells(workload, (("SR-STE", "sr-ste"), ("STEP", "step")))
    return Study(
        name="fig6",
        title="Decaying Mask with and without a dense phase",
        claim="A dense phase before the masks improves Decaying Mask too.",
        view="curves",
        cells=tuple(cells),
    )


def fig7(scope: Scope) -> Study:
    """Returns STEP with its switch fixed at shares of the run from 10 to 90 percent."""
    cells = []
    for workload in scope.chosen(images(scope)):
        fine = scope.scale == "full" or workload.name == "digits"
        for share in (10, 20, 30, 40, 50, 60, 70, 80, 90) if fine else (10, 30, 50, 70, 90):
            options = workload.option("step", switch=f"at:{share / 100}", window=None, clip=None)
            cells.append(
                workload.cell(
                    f"{share} %", "step", _AGGRESSIVE, column=workload.title, x=share / 100, options=options
                )
            )
        cells.append(workload.cell("AutoSwitch", "step", _AGGRESSIVE, column=workload.title))
        cells.append(workload.cell("SR-STE", "sr-ste", _AGGRESSIVE, column=workload.title))
        cells.append(workload.cell("dense", "dense", column=workload.title))
    return Study(
        name="fig7",
        title=f"STEP at {_AGGRESSIVE} by the share of steps in the dense phase",
        claim="A wide range of shares works; too short a precondition phase and too short a mask phase both "
        "cost accuracy.",
        view="shares",
        cells=tuple(cells),
    )


def fig8(scope: Scope) -> Study:
    """Returns STEP with its variance frozen, and updated, in the mask phase."""
    cells: list[Cell] = []
    rows = (
        ("dense", "dense"),
        ("SR-STE", "sr-ste"),
        ("STEP, variance updated", "step-updated"),
        ("STEP", "step"),
    )
    for workload in scope.chosen(images(scope)):
        fine = scope.scale == "full" or workload.name == "digits"
        cells += recipe_cells(workload, rows, patterns=None if fine else (_AGGRESSIVE,))
    return Study(
        name="fig8",
        title="STEP with the variance frozen or updated in the mask phase",
        claim="Freezing the variance, not the dense phase alone, is what helps.",
        view="scores",
        cells=tuple(cells),
    )
