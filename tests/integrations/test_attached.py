"""Wrapped optimizers: found through their wrappers, refused where a wrapper would swallow the recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nmstep
import tiny
from nmstep.integrations.attached import find_sparsifier, sparsifier_of, unwrapped


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an Optimizer by its class only, without hook tables."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


class Lookahead(torch.optim.Optimizer):
    """An optimizer of its own that uses another."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


def made() -> tuple[torch.nn.Module, nmstep.AdamW]:
    model = tiny.net()
    return model, nmstep.AdamW(model.parameters(), lr=1e-2)


def test_a_wrapper_is_refused_with_the_way_out() -> None:
    model, optimizer = made()
    with pytest.raises(TypeError, match=r"got Wrapper around AdamW; call sparsify before the trainer wraps"):
        nmstep.sparsify(model, Wrapper(optimizer), nmstep.SRSTE("2:4"))
    with pytest.raises(TypeError, match="got Wrapper around Wrapper"):
        nmstep.sparsify(model, Wrapper(Wrapper(optimizer)), nmstep.SRSTE("2:4"))


def test_an_optimizer_is_sparsified_once_through_any_wrapper() -> None:
    model, optimizer = made()
    sparsifier = nmstep.sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    wrapped = Wrapper(Wrapper(optimizer))
    assert unwrapped(wrapped) is optimizer
    assert find_sparsifier(wrapped) is sparsifier
    with pytest.raises(ValueError, match="has a sparsifier already"):
        nmstep.sparsify(model, unwrapped(wrapped), nmstep.SRSTE("2:4"))
    tiny.steps(model, wrapped, 3)
    assert sparsifier.step == 3
    sparsifier.finalize()
    assert find_sparsifier(wrapped) is None


def test_an_optimizer_with_hooks_of_its_own_is_no_wrapper() -> None:
    model, optimizer = made()
    outer = Lookahead(optimizer)
    sparsifier = nmstep.sparsify(model, outer, nmstep.SRSTE("2:4"))
    assert unwrapped(outer) is outer
    assert find_sparsifier(outer) is sparsifier
    tiny.steps(model, outer, 2)
    assert sparsifier.step == 2
    assert nmstep.verify(model, "2:4").ok


def test_what_finds_none_says_where_and_what_to_do() -> None:
    _, optimizer = made()
    with pytest.raises(ValueError, match=r"The callback found no sparsifier .* \(AdamW\): do this"):
        sparsifier_of(Wrapper(optimizer), needed_by="The callback", way_out="do this")
    with pytest.raises(ValueError, match=r"\(None\)"):
        sparsifier_of(None, needed_by="It", way_out="do this")
