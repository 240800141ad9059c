"""Memory that does not suffice half-way through a model: no weight is lost, and the run can go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import STEP, AdamW, Recipe, SwitchAt, sparsify
from nmstep.kernels import masks as kernels
from nmstep.optim import sparse_step
from tiny import net, steps


class NoMemoryError(RuntimeError):
    pass


def fails_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``function``, which raises at its ``call``-th call."""
    calls = iter(range(1, 1000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise NoMemoryError("no memory")
        return function(*args, **kwargs)

    return failing


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(model: nn.Module, expected: list[Tensor]) -> None:
    for p, value in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p, value)


@pytest.fixture
def second_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Returns what makes the second weight's pruned part find no room."""
    return lambda: monkeypatch.setattr(kernels.torch, "empty_like", fails_at(2, torch.empty_like))


def test_masked_gives_back_what_it_had_cut(second_fails: Callable[[], None]) -> None:
    model = net()
    sparsifier = sparsify(model, AdamW(model.parameters()), STEP("2:4", switch=SwitchAt(100)))
    before = weights(model)
    second_fails()
    with pytest.raises(NoMemoryError), sparsifier.masked():
        pass
    assert_same(model, before)
    with sparsifier.masked():
        assert nmstep.verify(model, "2:4").ok
    assert_same(model, before)


def test_latent_gives_back_what_it_had_added(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    sparsifier = sparsify(model, AdamW(model.parameters()), nmstep.STE("2:4"))
    before = weights(model)
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "add_", fails_at(2, Tensor.add_))
        with pytest.raises(NoMemoryError), sparsifier.latent():
            pass
    assert_same(model, before)
    with sparsifier.latent():
        assert not nmstep.verify(model, "2:4").ok
    assert_same(model, before)


def test_finalize_gives_back_what_it_had_cut(second_fails: Callable[[], None]) -> None:
    model = net()
    sparsifier = sparsify(model, AdamW(model.parameters()), STEP("2:4", switch=SwitchAt(100)))
    before = weights(model)
    second_fails()
    with pytest.warns(UserWarning, match="had not reached"), pytest.raises(NoMemoryError):
        sparsifier.finalize()
    assert_same(model, before)
    with pytest.warns(UserWarning, match="had not reached"):
        sparsifier.finalize()
    assert nmstep.verify(model, "2:4").ok


@pytest.mark.parametrize("recipe", [nmstep.STE("2:4"), nmstep.ASP("2:4")], ids=lambda recipe: recipe.name)
def test_sparsify_masks_all_or_nothing(recipe: Recipe, second_fails: Callable[[], None]) -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    before = weights(model)
    second_fails()
    with pytest.raises(NoMemoryError):
        sparsify(model, optimizer, recipe)
    assert_same(model, before)
    assert not optimizer.state
    sparsifier = sparsify(model, optimizer, recipe)
    assert sparsifier.phase == "sparse"
    assert nmstep.verify(model, "2:4").ok


def test_a_mask_that_finds_no_room_gives_every_weight_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = weights(model)
    with monkeypatch.context() as patched:
        patched.setattr(sparse_step, "nm_mask", fails_at(2, sparse_step.nm_mask))
        with pytest.raises(NoMemoryError):
            sparsify(model, AdamW(model.parameters()), nmstep.ASP("2:4"))
    assert_same(model, before)


@pytest.mark.parametrize("once", [False, True])
def test_a_switch_in_the_run_masks_all_or_nothing(once: bool, second_fails: Callable[[], None]) -> None:
    """The optimizer's own step is done by then; its weights are to be seen, all of them dense."""
    switch = SwitchAt(3)
    recipe = nmstep.ASP("2:4", start=3) if once else STEP("2:4", switch=switch)
    twin, model = net(), net()
    other = AdamW(twin.parameters())
    steps(twin, other, 3)
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, recipe)
    steps(model, optimizer, 2)
    second_fails()
    with pytest.raises(NoMemoryError):
        steps(model, optimizer, 1, first=2)
    assert sparsifier.phase == "dense"
    assert_same(model, weights(twin))
    assert not any("pruned" in state or "mask" in state for state in optimizer.state.values())
    steps(model, optimizer, 1, first=3)  # there is room again
    assert (sparsifier.phase, sparsifier.switch_step) == ("sparse", 4)
    assert nmstep.verify(model, "2:4").ok


def test_a_variance_that_cannot_be_cast_leaves_a_run_that_has_switched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(
        model, optimizer, STEP("2:4", switch=SwitchAt(2), preconditioner_dtype=torch.bfloat16)
    )
    steps(model, optimizer, 1)
    with monkeypatch.context() as patched:
        patched.setattr(AdamW, "hold_frozen_in_", fails_at(1, AdamW.hold_frozen_in_))
        with pytest.raises(NoMemoryError):
            steps(model, optimizer, 1, first=1)
    assert (sparsifier.phase, sparsifier.switch_step) == ("sparse", 2)
    assert all("pruned" in optimizer.state[p] for p in model.parameters())
    steps(model, optimizer, 2, first=2)
    assert sparsifier.step == 4
    assert nmstep.verify(model, "2:4").ok


def test_a_state_that_cannot_be_adopted_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    recipe = nmstep.SRSTE("2:4")
    sparsify(model, optimizer, recipe)
    steps(model, optimizer, 2)
    copied = net()
    copied.load_state_dict(model.state_dict())
    fresh = AdamW(copied.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    held = [fresh.state[p]["pruned"].clone() for p in copied.parameters()]
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "to", fails_at(3, Tensor.to))
        with pytest.raises(NoMemoryError):
            sparsify(copied, fresh, recipe)
    for p, value in zip(copied.parameters(), held, strict=True):
        assert torch.equal(fresh.state[p]["pruned"], value)
    sparsifier = sparsify(copied, fresh, recipe)
    assert sparsifier.step == 2
    for p, q in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["pruned"], fresh.state[q]["pruned"])
