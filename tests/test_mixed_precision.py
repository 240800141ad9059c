"""Autocast, loss scaling, clipping, and bfloat16 parameters with fp32 moments."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import STEP, AdamW, AutoSwitch, Recipe, SwitchAt, sparsify
from tiny import net, steps

RECIPES: dict[str, Callable[[], Recipe]] = {
    "sr-ste": lambda: nmstep.SRSTE("2:4"),
    "asp": lambda: nmstep.ASP("2:4", start=3),
    "step": lambda: STEP("2:4", switch=SwitchAt(4)),
    "autoswitch": lambda: STEP(
        "2:4", total_steps=12, switch=AutoSwitch(window=3, threshold=1e-7, clip=(0.3, 0.5))
    ),
}
recipes = pytest.mark.parametrize("recipe", list(RECIPES))


def groups_of(weight: Tensor) -> Tensor:
    return weight.detach().reshape(-1, 4).count_nonzero(1)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def run(
    recipe: str,
    batches: Iterable[int],
    *,
    scaler: torch.amp.GradScaler | None = None,
    bad: frozenset[int] = frozenset(),
    clip: float | None = None,
    **settings: Any,
) -> tuple[nn.Module, nmstep.Sparsifier]:
    """Trains on the batches; with a scaler, those in ``bad`` overflow."""
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    sparsifier = sparsify(model, optimizer, RECIPES[recipe](), **settings)
    for i in batches:
        optimizer.zero_grad()
        loss = loss_of(model, i)
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss * float("inf") if i in bad else loss).backward()
            scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return model, sparsifier


def loss_of(model: nn.Module, i: int) -> Tensor:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(i))
    return (model(x) - 1).square().mean()


def scaler_of_two() -> torch.amp.GradScaler:
    """Scales by powers of two, which round nothing, and changes its scale often."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)


@recipes
def test_a_scaled_loss_gives_the_same_weights(recipe: str) -> None:
    scaler = scaler_of_two()
    scaled, one = run(recipe, range(12), scaler=scaler)
    plain, other = run(recipe, range(12))
    assert scaler.get_scale() > 2.0**10
    assert equal(scaled, plain)
    assert (one.step, one.switch_step) == (other.step, other.switch_step)
    seen, expected = ([row.get("z") for row in s.trace.rows()] for s in (one, other))
    assert str(seen) == str(expected)  # NaN where nothing was measured
    assert recipe != "autoswitch" or seen[0] > 0


@recipes
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "ignore"])
def test_steps_that_the_scaler_skips_are_none(recipe: str, on_nonfinite: str) -> None:
    bad = frozenset({0, 4, 5, 9})
    with_bad, one = run(recipe, range(14), scaler=scaler_of_two(), bad=bad, on_nonfinite=on_nonfinite)
    without, other = run(recipe, [i for i in range(14) if i not in bad])
    assert equal(with_bad, without)
    assert (one.step, one.switch_step, one.skipped_steps) == (10, other.switch_step, 0)
    assert [row["step"] for row in one.trace.rows()] == list(range(1, 11))


@recipes
def test_clipping_sees_the_users_gradients_scaled_or_not(recipe: str) -> None:
    clipped, _ = run(recipe, range(10), clip=0.05)
    scaled, _ = run(recipe, range(10), clip=0.05, scaler=scaler_of_two())
    free, _ = run(recipe, range(10))
    assert equal(clipped, scaled)
    assert not equal(clipped, free)


@recipes
@pytest.mark.parametrize("fused", [None, False])
def test_a_step_inside_autocast_is_the_same_step(recipe: str, fused: bool | None) -> None:
    def train(inside: bool) -> nn.Module:
        model = net()
        optimizer = AdamW(model.parameters(), lr=1e-2, fused=fused)
        sparsify(model, optimizer, RECIPES[recipe]())
        for i in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, i)
            loss.backward()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                optimizer.step()
        return model

    inside, outside = train(True), train(False)
    assert equal(inside, outside)
    for p in inside.parameters():
        assert p.dtype == torch.float32
        assert (groups_of(p) <= 2).all()


def test_a_step_inside_autocast_is_seen_by_the_next_forward_pass() -> None:
    model = net()
    optimizer = AdamW(model.parameters(), lr=0.1)
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(loss_of(model, 0))
            losses[-1].backward()
            optimizer.step()
    assert (
        losses[0] > losses[1] > losses[2]
    )  # torch's own optimizers leave it to its cache of the first weights


@pytest.mark.parametrize("view", ["masked", "latent"])
def test_views_inside_autocast_are_seen(view: str) -> None:
    model = net()
    recipe = nmstep.SRSTE("1:4") if view == "latent" else STEP("1:4", switch=SwitchAt(5))
    sparsifier = sparsify(model, AdamW(model.parameters()), recipe)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        own = loss_of(model, 0)
        with getattr(sparsifier, view)():
            other = loss_of(model, 0)
        assert loss_of(model, 0) == own != other


def narrow(**kwargs: Any) -> tuple[nn.Module, AdamW]:
    model = net().to(torch.bfloat16)
    return model, AdamW(model.parameters(), lr=1e-2, **kwargs)


def narrow_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for i in range(first, first + count):
        optimizer.zero_grad()
        x = torch.randn(16, 16, generator=torch.Generator().manual_seed(i)).bfloat16()
        (model(x).float() - 1).square().mean().backward()
        optimizer.step()


def moments(optimizer: torch.optim.Optimizer) -> list[tuple[torch.dtype, torch.dtype]]:
    return [(s["exp_avg"].dtype, s["exp_avg_sq"].dtype) for s in optimizer.state.values()]


def test_narrow_parameters_have_narrow_moments_as_in_torch() -> None:
    for cls in (AdamW, torch.optim.AdamW):
        model = net().to(torch.bfloat16)
        optimizer = cls(model.parameters())
        narrow_steps(model, optimizer, 1)
        assert set(moments(optimizer)) == {(torch.bfloat16, torch.bfloat16)}


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("eps_root", [0.0, 1e-6])
def test_fp32_moments_give_the_fp32_step_rounded_once(foreach: bool, eps_root: float) -> None:
    model, optimizer = narrow(state_dtype=torch.float32, foreach=foreach, eps_root=eps_root)
    p = model[0].weight
    m, v = torch.zeros_like(p, dtype=torch.float32), torch.zeros_like(p, dtype=torch.float32)
    for t in range(1, 5):
        w = p.detach().float()
        optimizer.zero_grad()
        (model(torch.full((2, 16), 0.1 * t).bfloat16()).float() - 1).square().mean().backward()
        g = p.grad.float()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        hat = (v / (1 - 0.999**t) + eps_root).sqrt() + 1e-8
        w = w * (1 - 1e-2 * 1e-2) - 1e-2 * (m / (1 - 0.9**t)) / hat
        state = optimizer.state[p]
        torch.testing.assert_close(state["exp_avg"], m, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(state["exp_avg_sq"], v, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(p.detach(), w.bfloat16(), rtol=2**-7, atol=0)
        assert (
            p.detach() == w.bfloat16()
        ).float().mean() > 0.99  # but for a rounding of the sum here and there


def test_why_one_wants_them() -> None:
    # v · 0.999 rounds to v in bfloat16, so a second moment that is held in it never shrinks.
    for state_dtype, shrinks in ((None, False), (torch.float32, True)):
        p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = AdamW([p], state_dtype=state_dtype)
        p.grad = torch.ones(4, dtype=torch.bfloat16)
        optimizer.step()
        first = optimizer.state[p]["exp_avg_sq"].clone()
        p.grad = torch.zeros(4, dtype=torch.bfloat16)
        for _ in range(5):
            optimizer.step()
        assert bool((optimizer.state[p]["exp_avg_sq"] < first).all()) == shrinks


def test_float16_parameters_can_take_a_zero_gradient_then() -> None:
    # torch's floor of 1e-8 is zero in float16, where a gradient of zero gives 0 / 0.
    for state_dtype, expected in ((None, float("nan")), (torch.float32, 1.0)):
        p = nn.Parameter(torch.ones(2, dtype=torch.float16))
        optimizer = AdamW([p], weight_decay=0.0, state_dtype=state_dtype)
        p.grad = torch.zeros(2, dtype=torch.float16)
        optimizer.step()
        assert torch.equal(p.detach().nan_to_num(-1), torch.full((2,), expected).half().nan_to_num(-1))


@recipes
@pytest.mark.parametrize("load_first", [False, True])
@pytest.mark.parametrize("cut", [2, 9])
def test_fp32_moments_survive_a_file_to_the_bit(recipe: str, load_first: bool, cut: int) -> None:
    whole, optimizer = narrow(state_dtype=torch.float32)
    sparsifier = sparsify(whole, optimizer, RECIPES[recipe]())
    narrow_steps(whole, optimizer, 12)
    first, one = narrow(state_dtype=torch.float32)
    sparsify(first, one, RECIPES[recipe]())
    narrow_steps(first, one, cut)
    file = io.BytesIO()
    torch.save((first.state_dict(), one.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again, other = narrow(state_dtype=torch.float32)
    if load_first:
        other.load_state_dict(state)
    resumed = sparsify(again, other, RECIPES[recipe]())
    again.load_state_dict(weights)
    if not load_first:
        other.load_state_dict(state)
    assert set(moments(other)) == {(torch.float32, torch.float32)}
    for p, q in zip(again.parameters(), first.parameters(), strict=True):
        assert torch.equal(other.state[p]["exp_avg_sq"], one.state[q]["exp_avg_sq"])
    narrow_steps(again, other, 12 - cut, first=cut)
    assert equal(again, whole)
    assert resumed.switch_step == sparsifier.switch_step
    for p, q in zip(again.parameters(), whole.parameters(), strict=True):
        assert other.state[p]["pruned"].dtype == torch.bfloat16 if "pruned" in other.state[p] else True
        assert torch.equal(other.state[p]["exp_avg_sq"], optimizer.state[q]["exp_avg_sq"])


def test_moments_of_another_dtype_are_taken_in() -> None:
    model, optimizer = narrow()
    narrow_steps(model, optimizer, 3)
    of_bf16 = copy.deepcopy(optimizer.state_dict())
    again, other = narrow(state_dtype=torch.float32)
    other.load_state_dict(of_bf16)
    narrow_steps(again, other, 1)
    assert set(moments(other)) == {(torch.float32, torch.float32)}
    last, narrowed = narrow()
    narrowed.load_state_dict(copy.deepcopy(other.state_dict()))  # as torch does without being told
    assert set(moments(narrowed)) == {(torch.bfloat16, torch.bfloat16)}
    narrow_steps(last, narrowed, 1)


def test_a_loaded_file_is_not_written_to() -> None:
    model, optimizer = narrow(state_dtype=torch.float32)
    narrow_steps(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    before = state["state"][0]["exp_avg_sq"].clone()
    again, other = narrow(state_dtype=torch.float32)
    other.load_state_dict(state)
    narrow_steps(again, other, 2)
    assert torch.equal(state["state"][0]["exp_avg_sq"], before)


def test_the_frozen_variance_goes_with_either_dtype() -> None:
    for held in (None, torch.bfloat16):
        model, optimizer = narrow(state_dtype=torch.float32)
        recipe = STEP("2:4", switch=SwitchAt(3), preconditioner_dtype=held)
        sparsifier = sparsify(model, optimizer, recipe)
        narrow_steps(model, optimizer, 6)
        assert set(moments(optimizer)) == {(torch.float32, held or torch.float32)}
        state = copy.deepcopy(optimizer.state_dict())
        again, other = narrow(state_dtype=torch.float32)
        sparsify(again, other, recipe)
        again.load_state_dict(model.state_dict())
        other.load_state_dict(state)
        assert moments(other) == moments(optimizer)
        narrow_steps(model, optimizer, 2, first=6)
        narrow_steps(again, other, 2, first=6)
        assert equal(again, model)
        sparsifier.finalize()
        assert set(moments(optimizer)) == {(torch.float32, torch.float32)}
        narrow_steps(model, optimizer, 1)


@pytest.mark.parametrize("kwargs", [{"fused": True}, {"amsgrad": True}], ids=str)
def test_fp32_moments_with_other_settings(kwargs: dict[str, Any]) -> None:
    if "fused" in kwargs and nmstep.kernels.status().active == "torch":
        pytest.skip("needs kernels")
    model, optimizer = narrow(state_dtype=torch.float32, **kwargs)
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    narrow_steps(model, optimizer, 3)
    assert set(moments(optimizer)) == {(torch.float32, torch.float32)}
    assert copy.deepcopy(optimizer).widens(model[0].weight)
    assert all((groups_of(p) <= 2).all() for p in model.parameters())


def test_wide_parameters_keep_their_dtype() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = AdamW([p], state_dtype=torch.float32)
    p.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.float64
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert all("state_dtype" not in group for group in optimizer.param_groups)
    with pytest.raises(ValueError, match=r"state_dtype=torch\.bfloat16: expected torch.float32, or None"):
        AdamW([p], state_dtype=torch.bfloat16)


def test_a_model_that_is_cast_goes_on_with_its_fp32_moments() -> None:
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    steps(model, optimizer, 2)
    model.bfloat16()
    narrow_steps(model, optimizer, 2)
    assert set(moments(optimizer)) == {(torch.float32, torch.float32)}


def test_the_switch_sees_fp32_moments() -> None:
    model, optimizer = narrow(state_dtype=torch.float32)
    recipe = STEP("2:4", total_steps=100, switch=AutoSwitch(window=50))
    sparsifier = sparsify(model, optimizer, recipe)
    narrow_steps(model, optimizer, 3)
    before = [s["exp_avg_sq"].clone() for s in optimizer.state.values()]
    narrow_steps(model, optimizer, 1, first=3)
    after = [s["exp_avg_sq"] for s in optimizer.state.values()]
    change = sum((a.double() - b.double()).abs().sum() for a, b in zip(after, before, strict=True))
    d = sum(a.numel() for a in after)
    assert sparsifier.trace.rows()[-1]["z"] == pytest.approx(float(change / d), rel=1e-4)
