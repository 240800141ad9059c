"""The state machine on any optimizer: phases, gradients, closures, errors."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import STEP, AdamW, Recipe, SwitchAt, TraceOptions, sparsify
from nmstep.kernels import status
from tiny import backward, net, steps

PATTERN = "2:4"


def is_nm(p: Tensor, n: int = 2, m: int = 4) -> bool:
    return bool((p.reshape(-1, m).count_nonzero(1) <= n).all())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.005),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.02),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "nmstep": lambda p: AdamW(p, lr=0.01, fused=False),
    "nmstep, kernels": lambda p: AdamW(p, lr=0.01, fused=True if status().threads else None),
}
RECIPES: dict[str, Callable[[], Recipe]] = {
    "asp": lambda: nmstep.ASP(PATTERN, start=3),
    "ste": lambda: nmstep.STE(PATTERN),
    "sr-ste": lambda: nmstep.SRSTE(PATTERN),
    "decaying": lambda: nmstep.DecayingMask(PATTERN, 2, interval=3),
    "step, v updated": lambda: STEP(PATTERN, switch=SwitchAt(4), freeze_variance=False),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_runs_every_recipe_that_freezes_nothing(optimizer: str, recipe: str) -> None:
    model = net()
    opt = OPTIMIZERS[optimizer](model.parameters())
    sparsifier = sparsify(model, opt, RECIPES[recipe]())
    first = float(backward(model).detach())
    steps(model, opt, 40)
    assert sparsifier.phase == "sparse"
    assert sparsifier.step == 40
    assert all(is_nm(p) for p in model.parameters())
    opt.zero_grad()
    assert float(backward(model).detach()) < first


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_sees_the_latent_weight(optimizer: str) -> None:
    """One sparse step equals the bare optimizer's step on w = p + pruned with the same gradient."""
    model, twin = net(), net()
    opt, bare = (OPTIMIZERS[optimizer](m.parameters()) for m in (model, twin))
    sparsify(model, opt, nmstep.STE(PATTERN))
    for i in range(5):
        opt.zero_grad()
        backward(model, i)
        for p, w in zip(model.parameters(), twin.parameters(), strict=True):
            assert p.grad is not None
            w.grad = p.grad.clone()
        opt.step()
        bare.step()
        for p, w in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p + opt.state[p]["pruned"], w)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_users_gradients_are_untouched(recipe: str) -> None:
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsify(model, opt, RECIPES[recipe]())
    for i in range(8):
        opt.zero_grad()
        backward(model, i)
        tensors = [p.grad for p in model.parameters()]
        values = [g.clone() for g in tensors if g is not None]
        opt.step()
        for p, tensor, value in zip(model.parameters(), tensors, values, strict=True):
            assert p.grad is tensor
            assert torch.equal(value, p.grad)


def test_a_recipe_that_starts_at_k_masks_right_after_the_kth_step() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.ASP(PATTERN, start=2))
    steps(model, opt, 1)
    assert (sparsifier.phase, sparsifier.switch_step) == ("dense", None)
    steps(model, opt, 1)
    assert (sparsifier.phase, sparsifier.switch_step, sparsifier.switch_reason) == ("sparse", 2, "scheduled")
    assert all(is_nm(p) for p in model.parameters())
    model = net()
    sparsify(model, AdamW(model.parameters()), nmstep.STE(PATTERN))
    assert all(is_nm(p) for p in model.parameters())


def test_autoswitch_fires_where_its_formula_says() -> None:
    """Z_t is recomputed here from copies of v, with a window and threshold of our own."""
    model = net()
    opt = AdamW(model.parameters(), betas=(0.9, 0.9), lr=1e-3)
    switch = nmstep.AutoSwitch(window=4, threshold=3.5e-5, clip=None)
    sparsifier = sparsify(model, opt, STEP(PATTERN, switch=switch))
    old = [torch.zeros_like(p) for p in model.parameters()]
    samples: list[float] = []
    expected = None
    for i in range(60):
        opt.zero_grad()
        backward(model, i)
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        opt.step()
        new = [0.9 * v + 0.1 * g * g for v, g in zip(old, grads, strict=True)]
        d = sum(v.numel() for v in new)
        samples.append(sum(float((a - b).abs().sum()) for a, b in zip(new, old, strict=True)) / d)
        old = new
        if expected is None and len(samples) >= 4 and sum(samples[-4:]) / 4 < 3.5e-5:
            expected = i + 1
    assert expected is not None
    assert 4 < expected < 60
    assert (sparsifier.switch_step, sparsifier.switch_reason) == (expected, "threshold")
    rows = sparsifier.trace.rows()
    assert [r["z"] for r in rows[:expected]] == pytest.approx(samples[:expected], rel=1e-4)
    assert rows[expected - 1]["z_mean"] == pytest.approx(sum(samples[expected - 4 : expected]) / 4, rel=1e-4)
    assert [r["phase"] for r in rows] == ["dense"] * expected + ["sparse"] * (60 - expected)


@pytest.mark.parametrize("decoupled", [True, False])
def test_the_traced_variance_is_the_optimizers(decoupled: bool) -> None:
    model = net()
    opt = torch.optim.Adam(
        model.parameters(), weight_decay=0.1, maximize=True, decoupled_weight_decay=decoupled
    )
    sparsifier = sparsify(
        model,
        opt,
        nmstep.SRSTE(PATTERN, refine=0.1),
        trace=TraceOptions(variance_every=1, geometric=True, block=3),
    )
    v = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(7):
        steps(model, opt, 1, i)
        new = [opt.state[p]["exp_avg_sq"] for p in model.parameters()]
        change = torch.cat([(a - b).abs().flatten() for a, b in zip(new, v, strict=True)])
        everything = torch.cat([a.flatten() for a in new])
        v = [a.clone() for a in new]
        row = sparsifier.trace.rows()[-1]
        assert row["step"] == i + 1
        assert row["z"] == pytest.approx(float(change.mean()), rel=1e-3)
        assert row["z_geometric"] == pytest.approx(float(change[change > 0].log().mean().exp()), rel=1e-2)
        assert row["v_norm1"] == pytest.approx(float(everything.sum()), rel=1e-4)
        assert row["v_norm2"] == pytest.approx(float(everything.norm()), rel=1e-4)


def test_layers_are_sampled_with_their_flip_rate() -> None:
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    sparsifier = sparsify(
        model, opt, nmstep.STE(PATTERN), trace=TraceOptions(layers_every=2, variance_every=0)
    )
    for i in range(4):
        before = [p != 0 for p in model.parameters()]
        steps(model, opt, 1, i)
        after = [p != 0 for p in model.parameters()]
    sparsifier.trace.flush()
    last = sparsifier.trace.layers[-2:]
    assert [(row["step"], row["name"]) for row in last] == [(4, "0.weight"), (4, "2.weight")]
    for row, old, new, p in zip(last, before, after, model.parameters(), strict=True):
        assert row["flip_rate"] == pytest.approx(float((old != new).float().mean()))
        assert row["density"] == 0.5
        assert row["kept_norm"] == pytest.approx(float(p.detach().norm()), rel=1e-5)
        assert row["pruned_norm"] == pytest.approx(float(opt.state[p]["pruned"].norm()), rel=1e-5)
    assert {row["step"] for row in sparsifier.trace.layers} == {2, 4}
    assert all(row["v_norm1"] is None for row in sparsifier.trace.rows())


def test_loss_and_learning_rate_are_traced() -> None:
    model = net()
    opt = AdamW(model.parameters(), lr=0.5)
    sparsifier = sparsify(model, opt, nmstep.Dense())
    sparsifier.log_loss(backward(model))
    opt.step()
    opt.param_groups[0]["lr"] = 0.25
    sparsifier.log_loss(2.5)
    opt.step()
    opt.step()
    rows = sparsifier.trace.rows()
    assert [r["lr"] for r in rows] == [0.5, 0.25, 0.25]
    assert rows[1]["loss"] == 2.5
    assert rows[2]["loss"] is None
    assert len(sparsifier.trace) == 3
    assert [r["step"] for r in sparsifier.trace.rows(start=2)] == [3]


def test_what_is_recorded_on_the_cpu_is_read_at_once() -> None:
    # A tensor kept until the block is full would show what was written into it since.
    model = net()
    opt = AdamW(model.parameters(), lr=0.5)
    sparsifier = sparsify(model, opt, nmstep.Dense())
    loss = torch.tensor(2.0)
    sparsifier.log_loss(loss)
    backward(model)
    opt.step()
    loss.fill_(3.0)
    assert sparsifier.trace.rows()[0]["loss"] == 2.0


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: AdamW(p, lr=0.1)])
def test_a_closure_is_evaluated_once_on_the_masked_weights(
    make: Callable[[Any], torch.optim.Optimizer],
) -> None:
    model = net()
    opt = make(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.STE(PATTERN))
    seen = []

    def closure() -> Tensor:
        seen.append(all(is_nm(p) for p in model.parameters()))
        opt.zero_grad()
        return backward(model)

    loss = opt.step(closure)  # type: ignore[arg-type]
    opt.step(closure=closure)  # type: ignore[arg-type]
    assert seen == [True, True]
    assert sparsifier.trace.rows()[0]["loss"] == pytest.approx(float(loss.detach()))  # type: ignore[union-attr]


def test_masked_evaluates_the_dense_phase_as_if_sparse() -> None:
    model = net()
    sparsifier = sparsify(model, AdamW(model.parameters()), nmstep.ASP("1:4", start=5))
    before = [p.detach().clone() for p in model.parameters()]
    with sparsifier.masked():
        assert all(is_nm(p, 1) for p in model.parameters())
    with pytest.raises(KeyError), sparsifier.masked():
        raise KeyError
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)


def test_finalize_leaves_a_plain_model_and_optimizer() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.STE(PATTERN))
    steps(model, opt, 3)
    weights = [p.detach().clone() for p in model.parameters()]
    sparsifier.finalize()
    assert all("pruned" not in opt.state[p] for p in model.parameters())
    assert "nmstep" not in opt.state_dict()["state"][0]
    for p, q in zip(model.parameters(), weights, strict=True):
        assert torch.equal(p, q)
    sparsify(model, opt, nmstep.Dense())  # the optimizer is free again
    steps(model, opt, 1)
    assert not is_nm(model[0].weight)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (nmstep.ASP(PATTERN, start=9), "the masks had not started"),
        (nmstep.DecayingMask("1:4", interval=5), "the schedule was not over"),
    ],
)
def test_finalize_too_early_warns_and_still_gives_nm(recipe: Recipe, says: str) -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, recipe)
    steps(model, opt, 3)
    with pytest.warns(UserWarning, match=says):
        sparsifier.finalize()
    assert all(is_nm(p, recipe.pattern.n) for p in model.parameters())  # type: ignore[union-attr]


def test_freezing_only_the_sparse_parameters() -> None:
    model = net()
    opt = AdamW(model.parameters())
    plan = nmstep.plan(model, PATTERN, exclude=["2"])
    sparsify(model, opt, STEP(plan, switch=SwitchAt(2), freeze="sparse"))
    steps(model, opt, 2)
    assert ["frozen_eps_root" in opt.state[p] for p in model.parameters()] == [True, False]


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: STEP(PATTERN), r"needs to know how long training lasts.*total_steps="),
        (lambda: STEP(PATTERN, 100, switch=SwitchAt(0)), "at step 0 there is none yet"),
        (lambda: STEP(PATTERN, 0), "expected an integer >= 1"),
        (lambda: STEP(PATTERN, 10, eps_root=-1), r"STEP\(eps_root=-1\): expected a finite number >= 0"),
        (lambda: STEP(PATTERN, 10, eps_root=math.inf), "expected a finite number >= 0"),
        (lambda: STEP(PATTERN, 10, freeze="none of them"), "expected one of 'none', 'all', 'sparse'"),
        (lambda: nmstep.SRSTE(PATTERN, refine=-1), r"SR-STE\(refine=-1\): expected a finite number >= 0"),
        (lambda: nmstep.SRSTE(PATTERN, refine=math.nan), "expected a finite number >= 0"),
        (lambda: nmstep.SRSTE(PATTERN, refine=math.inf), "expected a finite number >= 0"),
        (lambda: nmstep.ASP("4:2"), "pattern 4:2"),
        (lambda: nmstep.ASP(PATTERN, start=-1), "steps >= 0"),
        (lambda: nmstep.DecayingMask(PATTERN, interval=0), "steps >= 1, got 0"),
        (lambda: Recipe(name="x", pattern=PATTERN, switch=None), "a pattern needs a switch"),
        (lambda: Recipe(name="x", pattern=PATTERN, mask="often"), "expected one of 'every_step', 'once'"),
    ],
)
def test_recipes_that_cannot_be_meant(make: Callable[[], Recipe], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_recipe_of_another_type() -> None:
    with pytest.raises(TypeError, match="pattern must be"):
        nmstep.STE(24)  # type: ignore[arg-type]
    model = net()
    with pytest.raises(TypeError, match="sparsify takes a recipe"):
        sparsify(model, AdamW(model.parameters()), "2:4")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"takes a torch.optim.Optimizer, got object"):
        sparsify(model, object(), nmstep.Dense())  # type: ignore[arg-type]


def test_an_optimizer_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"does not hold 2 parameter\(s\).*'0.weight', '2.weight'"):
        sparsify(net(), AdamW(net().parameters()), nmstep.STE(PATTERN))


def test_sparsify_twice() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.STE(PATTERN))
    with pytest.raises(ValueError, match=r"AdamW has a sparsifier already \(STE\)"):
        sparsify(model, opt, nmstep.STE(PATTERN))


def test_optimizers_that_cannot() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"STEP freezes the variance, which Adam cannot: use nmstep.AdamW"):
        sparsify(model, torch.optim.Adam(model.parameters()), STEP(PATTERN, 10))
    with pytest.raises(ValueError, match=r"AutoSwitch reads Adam's second moment, which SGD does not keep"):
        sparsify(model, torch.optim.SGD(model.parameters()), STEP(PATTERN, 10, freeze_variance=False))
    with pytest.raises(ValueError, match="LBFGS evaluates its closure several times"):
        sparsify(model, torch.optim.LBFGS(model.parameters()), nmstep.STE(PATTERN))
    with pytest.raises(ValueError, match="use amsgrad=False"):
        sparsify(model, AdamW(model.parameters(), amsgrad=True), STEP(PATTERN, 10))
    with pytest.raises(ValueError, match="expected 'raise', 'skip' or 'ignore'"):
        sparsify(model, AdamW(model.parameters()), nmstep.Dense(), on_nonfinite="warn")  # type: ignore[arg-type]


def snapshot(model: nn.Module, opt: torch.optim.Optimizer) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()] + [
        v.clone() for s in opt.state.values() for v in s.values() if isinstance(v, Tensor)
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("phase", ["dense", "sparse"])
def test_a_nonfinite_gradient_is_named_and_changes_nothing(bad: float, phase: str) -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(
        model, opt, nmstep.ASP(PATTERN, start=9) if phase == "dense" else nmstep.STE(PATTERN)
    )
    steps(model, opt, 2)
    before = snapshot(model, opt)
    backward(model)
    model[2].weight.grad[0, 3] = bad  # type: ignore[index]
    with pytest.raises(FloatingPointError, match=r"at optimizer step 3 in '2.weight'; nothing was changed"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, opt), strict=True))
    steps(model, opt, 1)
    assert sparsifier.step == 3


def test_a_nonfinite_gradient_is_skipped_by_option() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.STE(PATTERN), on_nonfinite="skip")
    steps(model, opt, 2)
    before = snapshot(model, opt)
    backward(model)
    grad = model[0].weight.grad
    grad[0, 0] = math.nan  # type: ignore[index]
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, opt), strict=True))
    assert model[0].weight.grad is grad
    assert (sparsifier.step, sparsifier.skipped_steps) == (2, 1)


def test_ignoring_lets_nan_through() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.STE(PATTERN), on_nonfinite="ignore")
    backward(model)
    model[0].weight.grad[0, 0] = math.nan  # type: ignore[index]
    opt.step()
    assert bool(model[0].weight.isnan().any())


def test_a_step_that_only_creates_state_is_none() -> None:
    model = net()
    opt = AdamW(model.parameters(), lr=0.0)
    sparsifier = sparsify(model, opt, STEP(PATTERN, 100))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert sparsifier.step == 0
    assert sparsifier.trace.rows() == []
    backward(model)  # a warm-up that starts at lr = 0 has real gradients
    opt.step()
    assert sparsifier.step == 1


def test_a_parameter_written_to_from_outside() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.STE(PATTERN))
    steps(model, opt, 1)
    model.load_state_dict(model.state_dict())  # the same N:M weights: fine
    steps(model, opt, 1)
    model.load_state_dict(net().state_dict())
    backward(model)
    with pytest.raises(ValueError, match=r"'0\.weight' was written to.*load weights before nmstep.sparsify"):
        opt.step()


def test_a_parameter_that_changed_its_shape() -> None:
    model = net()
    opt = torch.optim.SGD(model.parameters())
    sparsify(model, opt, nmstep.STE(PATTERN))
    model[0].weight.data = torch.zeros(32, 20)
    model[0].weight.grad = torch.zeros(32, 20)
    with pytest.raises(ValueError, match=r"'0.weight' had shape \(32, 16\).*now has \(32, 20\)"):
        opt.step()


def test_an_optimizer_that_raises_leaves_a_state_that_goes_on() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.STE(PATTERN), on_nonfinite="ignore")
    steps(model, opt, 2)
    model[0].weight.grad = torch.zeros(32, 16).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        opt.step()
    opt.state_dict()
    assert all(is_nm(p) for p in model.parameters())
    steps(model, opt, 2)
    assert sparsifier.step == 4


def test_scaled_gradients_are_refused_and_found_inf_is_no_step() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.STE(PATTERN))
    backward(model)
    opt.grad_scale = torch.tensor(8.0)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="unscale_"):
        opt.step()
    opt.grad_scale = None  # type: ignore[attr-defined]
    opt.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    opt.step()
    assert sparsifier.step == 0


@pytest.mark.parametrize("option", ["variance_every", "layers_every", "block"])
def test_trace_options_are_checked(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        TraceOptions(**{option: -1})


def test_a_switch_of_another_type_is_explained() -> None:
    with pytest.raises(TypeError, match=r"STEP\(switch='auto'\): expected a switch such as AutoSwitch"):
        STEP(PATTERN, 100, switch="auto")  # type: ignore[arg-type]


def test_a_sparsifier_prints_where_it_stands() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.ASP(PATTERN, start=2))
    assert "ASP, step 0, phase dense" in repr(sparsifier)
    steps(model, opt, 2)
    assert "phase sparse, masks from step 2 (scheduled)" in repr(sparsifier)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_sparsifier_is_not_copied(copied: Callable[[Any], Any]) -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, STEP(PATTERN, total_steps=100))
    with pytest.raises(TypeError, match=r"optimizer\.state_dict\(\)"):
        copied((model, optimizer, sparsifier))
    copied((model, optimizer))  # which says itself what is lost, where it is used
