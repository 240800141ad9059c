"""One optimizer step of each method against torch's fused AdamW, on the same layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from layers import captured, step_alone
from methods import Method, torch_adamw
from record import Row, row_of
from settings import Settings
from torch import nn

import nmstep
from nmstep.timing import Step

__all__ = ["Case", "measure_cases"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method at a pattern.

    Args:
        name: in the table.
        method: attaches it to a model.
        pattern: N kept of M.
        sparse: whether the weights are N:M while it is measured, which is checked.
        bar: what may not be exceeded, or None.
        calls: steps in each round; None for one, or a hundred short ones.
        captured: whether a CUDA graph repeats the step.
    """

    name: str
    method: Method
    pattern: str = "2:4"
    sparse: bool = False
    bar: float | None = None
    calls: int | None = None
    captured: bool = False


def measure_cases(
    section: str,
    build: Callable[[], nn.Module],
    cases: Iterable[Case],
    settings: Settings,
    *,
    weights: int | None = None,
) -> Iterator[Row]:
    """Yields the row of each case.

    Args:
        section: of the rows.
        build: returns a fresh model of layers that have one weight and no bias.
        cases: what to measure.
        settings: of the run.
        weights: for the rows of a series over sizes.
    """
    fused = Case(name="torch fused", method=torch_adamw(fused=True))
    theirs = _program(build, fused, settings)[1]
    for case in cases:
        yield _row(section, build, case, theirs, settings, weights)


def _row(
    section: str,
    build: Callable[[], nn.Module],
    case: Case,
    theirs: Step,
    settings: Settings,
    weights: int | None,
) -> Row:
    """Returns one row; a function of its own so that its tensors are free afterwards."""
    model, ours = _program(build, case, settings)
    timing = settings.in_turn(ours, theirs, calls=case.calls)
    if case.sparse:
        nmstep.verify(model, case.pattern).raise_if_failed()
    return row_of(timing, section, case.name, bar=case.bar, weights=weights)


def _program(build: Callable[[], nn.Module], case: Case, settings: Settings) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    model = build().to(settings.device)
    optimizer = case.method(model, case.pattern)
    step = step_alone(model, optimizer)
    return model, captured(step, optimizer) if case.captured else step
