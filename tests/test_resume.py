"""Saving and loading at any step continues bit for bit, through torch.save with weights_only=True."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import nmstep
from nmstep import STEP, AdamW, AutoSwitch, Recipe, SwitchAt, sparsify
from nmstep.optim import record
from tiny import net, steps

TOTAL = 30
RECIPES: dict[str, Callable[[], Recipe]] = {
    "dense": nmstep.Dense,
    "asp": lambda: nmstep.ASP("2:4", start=10),
    "ste": lambda: nmstep.STE("2:4"),
    "sr-ste": lambda: nmstep.SRSTE("1:4", refine=0.01),
    "decaying": lambda: nmstep.DecayingMask("1:8", 5, interval=6),
    "step": lambda: STEP("1:4", TOTAL, switch=AutoSwitch(window=8, threshold=1e-12)),
    "step, geometric": lambda: STEP(
        "1:4", switch=AutoSwitch(mean="geometric", window=12, threshold=1.0, clip=None)
    ),
    "step, at 10": lambda: STEP("1:4", switch=SwitchAt(10)),
    "step, eq. 10": lambda: STEP("1:4", switch=nmstep.RelativeNorm(bound=0.06)),
    "step, eq. 11": lambda: STEP("1:4", switch=nmstep.NormRatio(window=9)),
}
CUTS = [0, 1, 5, 9, 10, 11, 15, 16, 22]


def make(optimizer: Callable[[Any], torch.optim.Optimizer], recipe: Recipe) -> tuple[Any, ...]:
    model = net()
    opt = optimizer(model.parameters())
    return model, opt, sparsify(model, opt, recipe)


def through_a_file(value: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def assert_same(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    (model, opt, sparsifier), (model2, opt2, sparsifier2) = a, b
    assert (sparsifier.switch_step, sparsifier.switch_reason, sparsifier.step) == (
        sparsifier2.switch_step,
        sparsifier2.switch_reason,
        sparsifier2.step,
    )
    for p, q in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.equal(p, q)
        assert opt.state[p].keys() == opt2.state[q].keys()
        for key, value in opt.state[p].items():
            other = opt2.state[q][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_resume_is_bit_for_bit(recipe: str, cut: int) -> None:
    whole = make(lambda p: AdamW(p, lr=0.01), RECIPES[recipe]())
    steps(whole[0], whole[1], TOTAL)
    first = make(lambda p: AdamW(p, lr=0.01), RECIPES[recipe]())
    steps(first[0], first[1], cut)
    saved = through_a_file({"model": first[0].state_dict(), "optimizer": first[1].state_dict()})
    second = make(lambda p: AdamW(p, lr=0.01), RECIPES[recipe]())
    if cut % 2:  # either order will do
        second[1].load_state_dict(saved["optimizer"])
        second[0].load_state_dict(saved["model"])
    else:
        second[0].load_state_dict(saved["model"])
        second[1].load_state_dict(saved["optimizer"])
    assert_same(first, second)
    steps(second[0], second[1], TOTAL - cut, cut)
    assert_same(whole, second)


def test_the_recipes_above_switch_where_cuts_lie_on_both_sides() -> None:
    for name in ("step", "step, geometric", "step, eq. 10", "step, eq. 11"):
        model, opt, sparsifier = make(lambda p: AdamW(p, lr=0.01), RECIPES[name]())
        steps(model, opt, TOTAL)
        assert sparsifier.switch_step is not None, name
        assert min(CUTS) < sparsifier.switch_step < max(CUTS), (name, sparsifier.switch_step)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.05),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Adafactor(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.005),
        lambda p: torch.optim.Muon(p, lr=0.02),
    ],
)
@pytest.mark.parametrize("cut", [0, 4, 13])
def test_other_optimizers_resume_too(optimizer: Callable[[Any], torch.optim.Optimizer], cut: int) -> None:
    whole, first, second = (make(optimizer, nmstep.SRSTE("2:4")) for _ in range(3))
    steps(whole[0], whole[1], 20)
    steps(first[0], first[1], cut)
    saved = through_a_file({"model": first[0].state_dict(), "optimizer": first[1].state_dict()})
    second[0].load_state_dict(saved["model"])
    second[1].load_state_dict(saved["optimizer"])
    steps(second[0], second[1], 20 - cut, cut)
    assert_same(whole, second)


@pytest.mark.parametrize("recipe", ["asp", "sr-ste", "step"])
def test_a_state_loaded_before_sparsify_is_continued(recipe: str) -> None:
    whole = make(lambda p: AdamW(p, lr=0.01), RECIPES[recipe]())
    steps(whole[0], whole[1], 20)
    saved = through_a_file({"model": whole[0].state_dict(), "optimizer": whole[1].state_dict()})
    model = net()
    opt = AdamW(model.parameters(), lr=0.01)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["optimizer"])
    again = (model, opt, sparsify(model, opt, RECIPES[recipe]()))
    assert_same(whole, again)
    steps(whole[0], whole[1], 5, 20)
    steps(model, opt, 5, 20)
    assert_same(whole, again)


def test_a_state_saved_before_the_first_step_loads_without_a_sparsifier() -> None:
    model, opt, _ = make(AdamW, nmstep.STE("2:4"))
    saved = through_a_file({"model": model.state_dict(), "optimizer": opt.state_dict()})
    again = net()
    other = AdamW(again.parameters())
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    with pytest.raises(RuntimeError, match="no sparsifier is attached"):
        steps(again, other, 1)
    sparsify(again, other, nmstep.STE("2:4"))
    steps(model, opt, 3)
    steps(again, other, 3)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_copied_optimizer_does_not_fill_the_zeros_silently() -> None:
    model, opt, _ = make(AdamW, nmstep.STE("2:4"))
    steps(model, opt, 2)
    twin_model, twin = copy.deepcopy((model, opt))
    with pytest.raises(RuntimeError, match="no sparsifier is attached"):
        steps(twin_model, twin, 1)
    with pytest.raises(ValueError, match="copy of a sparsified one"):
        sparsify(twin_model, twin, nmstep.STE("2:4"))


def test_masks_and_pruned_parts_of_bf16_parameters_keep_their_dtype() -> None:
    model = nn.Sequential(nn.Linear(16, 8)).bfloat16()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.ASP("2:4"))
    saved = through_a_file(opt.state_dict())
    opt.load_state_dict(saved)
    assert opt.state[model[0].weight]["mask"].dtype == torch.bool


def test_saving_does_not_touch_the_live_state() -> None:
    model, opt, _ = make(AdamW, nmstep.STE("2:4"))
    steps(model, opt, 2)
    opt.state_dict()
    assert all("nmstep" not in state for state in opt.state.values())


# -- what must not be loaded ---------------------------------------------------------------------------


def saved_state(recipe: Recipe, count: int = 3) -> dict[str, Any]:
    model, opt, _ = make(AdamW, recipe)
    steps(model, opt, count)
    return through_a_file(opt.state_dict())


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (nmstep.STE("1:4"), r"'0.weight' 1:4 of shape \(32, 16\) there, 2:4 of shape \(32, 16\) here"),
        (nmstep.SRSTE("2:4"), "name 'SR-STE' there, 'STE' here"),
        (nmstep.ASP("2:4"), "mask 'once' there, 'every_step' here"),
        (nmstep.DecayingMask("2:4", interval=3), "schedule .* there"),
        (nmstep.Dense(), "name 'Dense' there"),
    ],
)
def test_a_state_of_another_recipe_or_pattern_loads_nothing(recipe: Recipe, says: str) -> None:
    model, opt, _ = make(AdamW, nmstep.STE("2:4"))
    steps(model, opt, 1)
    before = opt.state_dict()
    with pytest.raises(ValueError, match=says):
        opt.load_state_dict(saved_state(recipe))
    after = opt.state_dict()
    assert torch.equal(before["state"][0]["exp_avg"], after["state"][0]["exp_avg"])
    assert torch.equal(before["state"][0]["nmstep"], after["state"][0]["nmstep"])


def test_a_state_of_another_model() -> None:
    other = nn.Sequential(nn.Linear(16, 12, bias=False), nn.Linear(12, 8, bias=False))
    opt = AdamW(other.parameters())
    sparsify(other, opt, nmstep.STE("2:4"))
    with pytest.raises(ValueError, match="belongs to another model, plan or recipe"):
        opt.load_state_dict(saved_state(nmstep.STE("2:4")))


def test_a_plain_state_into_a_sparse_phase() -> None:
    model = net()
    plain = AdamW(model.parameters())
    steps(model, plain, 2)
    _, opt, _ = make(AdamW, nmstep.STE("2:4"))
    with pytest.raises(ValueError, match="was not saved by a sparsifier"):
        opt.load_state_dict(plain.state_dict())
    _, later, sparsifier = make(AdamW, nmstep.ASP("2:4", start=5))
    later.load_state_dict(plain.state_dict())  # a dense run goes on as the dense phase
    assert sparsifier.phase == "dense"


def test_an_incomplete_or_damaged_state() -> None:
    state = saved_state(nmstep.STE("2:4"))
    del state["state"][1]["pruned"]
    _, opt, _ = make(AdamW, nmstep.STE("2:4"))
    with pytest.raises(ValueError, match=r"no 'pruned' part of shape \(8, 32\) for '2.weight'"):
        opt.load_state_dict(state)
    state = saved_state(nmstep.STE("2:4"))
    state["state"][0]["nmstep"][:9] = 0
    with pytest.raises(ValueError, match="'nmstep' entry is damaged"):
        opt.load_state_dict(state)


@pytest.mark.parametrize(
    ("saved", "here", "says"),
    [
        (nmstep.SRSTE("2:4"), nmstep.SRSTE("2:4", refine=0.5), "refine 0.0002 there, 0.5 here"),
        (
            STEP("2:4", switch=SwitchAt(20)),
            STEP("2:4", switch=SwitchAt(5)),
            r"switch 'SwitchAt\(step=20\)' there, 'SwitchAt\(step=5\)' here",
        ),
        (
            STEP("2:4", switch=SwitchAt(2)),
            STEP("2:4", switch=SwitchAt(2), eps_root=1e-2),
            "eps_root 1e-08 there, 0.01 here",
        ),
    ],
)
def test_a_state_of_the_same_recipe_with_other_numbers(saved: Recipe, here: Recipe, says: str) -> None:
    _, opt, _ = make(AdamW, here)
    with pytest.raises(ValueError, match=says):
        opt.load_state_dict(saved_state(saved))


def test_a_state_that_lost_the_optimizers_own_part() -> None:
    state = saved_state(nmstep.STE("2:4"))
    del state["state"][1]["exp_avg_sq"]
    _, opt, _ = make(AdamW, nmstep.STE("2:4"))
    with pytest.raises(ValueError, match=r"of '2\.weight' lacks exp_avg_sq, which it had when it was saved"):
        opt.load_state_dict(state)


def test_a_record_of_another_version() -> None:
    state = saved_state(nmstep.STE("2:4"))
    state["state"][0]["nmstep"] = record.encode({"version": 99})
    _, opt, _ = make(AdamW, nmstep.STE("2:4"))
    with pytest.raises(ValueError, match="record version 99, expected 1"):
        opt.load_state_dict(state)
