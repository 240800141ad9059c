"""Steps that raise, run twice, are skipped or are none: nothing is lost and nothing counts twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import STEP, AdamW, SwitchAt, sparsify
from nmstep.optim import sparse_step
from tiny import backward, net, steps


def is_nm(p: Tensor) -> bool:
    return bool((p.reshape(-1, 4).count_nonzero(1) <= 2).all())


class Raises(torch.optim.SGD):
    """Raises in the middle of a step when told to: after the first parameter was updated."""

    trip = False

    def step(self, closure: Any = None) -> Any:
        if self.trip:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            raise KeyboardInterrupt
        return super().step(closure)


def interrupted(recipe: nmstep.Recipe) -> tuple[nn.Module, Raises, nmstep.Sparsifier]:
    model = net()
    opt = Raises(model.parameters(), lr=0.1)
    sparsifier = sparsify(model, opt, recipe)
    steps(model, opt, 3)
    opt.zero_grad()
    backward(model)
    opt.trip = True
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    opt.trip = False
    return model, opt, sparsifier


@pytest.mark.parametrize("recipe", [nmstep.SRSTE("2:4", refine=0.5), nmstep.ASP("2:4")])
def test_the_next_step_uses_the_users_new_gradients(recipe: nmstep.Recipe) -> None:
    model, opt, sparsifier = interrupted(recipe)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    fresh = [p.grad for p in model.parameters()]
    opt.step()
    assert all(p.grad is grad for p, grad in zip(model.parameters(), fresh, strict=True))
    assert all(float(grad.abs().max()) == 0.0 for grad in fresh if grad is not None)
    assert sparsifier.step == 4
    assert all(is_nm(p) for p in model.parameters())


def test_without_new_gradients_the_users_own_come_back() -> None:
    model = net()
    opt = Raises(model.parameters(), lr=0.1)
    sparsify(model, opt, nmstep.SRSTE("2:4"))
    backward(model)
    own = [p.grad for p in model.parameters()]
    opt.trip = True
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    opt.state_dict()
    assert all(p.grad is grad for p, grad in zip(model.parameters(), own, strict=True))


def test_finalize_after_an_interruption_gives_nm() -> None:
    model, opt, sparsifier = interrupted(nmstep.STE("2:4"))
    sparsifier.finalize()
    assert all(is_nm(p) for p in model.parameters())
    sparsifier.finalize()  # a second time does nothing
    sparsify(model, opt, nmstep.STE("2:4"))
    sparsifier.finalize()  # nor to a sparsifier that came later
    assert all("pruned" in opt.state[p] for p in model.parameters())


@pytest.mark.parametrize("where", ["open", "close"])
def test_running_out_of_memory_loses_no_pruned_weight(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsify(model, opt, nmstep.SRSTE("2:4"))
    latent = [p.detach() + opt.state[p]["pruned"] for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    owner: Any = sparse_step.SparseStep if where == "open" else sparse_step
    attribute = {"open": "_replace", "close": "split_"}[where]
    real = getattr(owner, attribute)
    calls = []

    def fails_the_second_time(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, fails_the_second_time)
    with pytest.raises(MemoryError):
        opt.step()
    opt.state_dict()
    for p, w in zip(model.parameters(), latent, strict=True):
        assert is_nm(p)
        assert torch.equal(p + opt.state[p]["pruned"], w)


class Twice(AdamW):
    """A subclass whose step calls its parent's: torch then runs the hooks for both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_subclass_that_calls_super_counts_each_step_once() -> None:
    AdamW(net().parameters())  # torch hooks the parent class once it was used
    one, two = net(), net()
    opts = AdamW(one.parameters(), lr=0.01), Twice(two.parameters(), lr=0.01)
    sparsifiers = [sparsify(m, o, nmstep.SRSTE("2:4")) for m, o in zip((one, two), opts, strict=True)]
    for model, opt in zip((one, two), opts, strict=True):
        steps(model, opt, 6)
    assert [s.step for s in sparsifiers] == [6, 6]
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nmstep.SRSTE("2:4", refine=0.1),
        lambda: STEP("2:4", switch=SwitchAt(3)),
        lambda: nmstep.ASP("2:4"),
    ],
)
def test_ascending_a_loss_is_descending_its_negative(make: Any) -> None:
    up, down = net(), net()
    opts = AdamW(up.parameters(), lr=0.01, maximize=True), AdamW(down.parameters(), lr=0.01)
    for model, opt in zip((up, down), opts, strict=True):
        sparsify(model, opt, make())
    for i in range(8):
        for model, opt, sign in ((up, opts[0], 1.0), (down, opts[1], -1.0)):
            opt.zero_grad()
            backward(model, i)
            for p in model.parameters():
                p.grad = p.grad * sign  # type: ignore[operator]
            opt.step()
    for p, q in zip(up.parameters(), down.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_groups_of_different_betas_freeze_by_their_own() -> None:
    model = net()
    first, second = model.parameters()
    opt = AdamW([{"params": [first], "betas": (0.9, 0.99)}, {"params": [second], "lr": 0.1}])
    sparsifier = sparsify(model, opt, STEP("2:4", switch=SwitchAt(4)))
    v = [torch.zeros_like(p) for p in (first, second)]
    for i in range(4):
        opt.zero_grad()
        backward(model, i)
        for k, (p, beta2) in enumerate(((first, 0.99), (second, 0.999))):
            assert p.grad is not None
            v[k] = beta2 * v[k] + (1 - beta2) * p.grad**2
        opt.step()
    torch.testing.assert_close(opt.state[first]["exp_avg_sq"], v[0] / (1 - 0.99**4))
    torch.testing.assert_close(opt.state[second]["exp_avg_sq"], v[1] / (1 - 0.999**4))
    assert sparsifier.trace.d == first.numel() + second.numel()
    other = net()
    first, second = other.parameters()
    again = AdamW([{"params": [first], "betas": (0.9, 0.99)}, {"params": [second], "lr": 0.1}])
    sparsify(other, again, STEP("2:4", switch=SwitchAt(4)))
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(opt.state_dict()))  # torch itself shares what it loads
    for m, o in ((model, opt), (other, again)):
        steps(m, o, 4, 4)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_call_without_any_gradient_is_no_step() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, STEP("2:4", switch=nmstep.AutoSwitch(window=2, clip=None)))
    for _ in range(5):
        opt.step()
    assert (sparsifier.step, sparsifier.phase) == (0, "dense")


def test_a_scaler_that_found_infinities_changes_nothing() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.STE("2:4"))
    steps(model, opt, 2)
    before = [p.detach().clone() for p in model.parameters()]
    opt.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    opt.step()
    del opt.found_inf
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
        assert p.grad is not None


def test_a_real_scaler_skips_and_goes_on() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.SRSTE("2:4"))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for i in range(4):
        opt.zero_grad()
        loss = model(torch.ones(1, 16)).square().mean() * (float("inf") if i == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    assert sparsifier.step == 3


def test_masked_refuses_steps_and_saving() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.ASP("2:4", start=5))
    backward(model)
    with sparsifier.masked():
        with pytest.raises(RuntimeError, match=r"no optimizer.step\(\) inside"):
            opt.step()
        with pytest.raises(RuntimeError, match=r"no optimizer.state_dict\(\) inside"):
            opt.state_dict()
    opt.step()
    assert sparsifier.step == 1


def test_writes_that_torch_does_not_count_are_seen_when_layers_are_sampled() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.STE("2:4"), trace=nmstep.TraceOptions(layers_every=3))
    steps(model, opt, 2)
    model[0].weight.data.copy_(net()[0].weight)
    with pytest.raises(ValueError, match="was written to since the last step"):
        steps(model, opt, 1)


def test_a_cleared_optimizer_state_is_named() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.STE("2:4"))
    opt.state.clear()
    backward(model)
    with pytest.raises(RuntimeError, match=r"state of '0\.weight' no longer holds what its mask cut away"):
        opt.step()


def test_finalize_lets_the_variance_go_on_as_adams() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, STEP("2:4", switch=SwitchAt(2)))
    steps(model, opt, 2)
    frozen = opt.state[model[0].weight]["exp_avg_sq"].clone()
    steps(model, opt, 3)
    sparsifier.finalize()
    state = opt.state[model[0].weight]
    assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
    torch.testing.assert_close(state["exp_avg_sq"] / (1 - 0.999**5), frozen)


def test_the_trace_flushes_by_block_and_refuses_what_is_no_number() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(model, opt, nmstep.ASP("2:4"), trace=nmstep.TraceOptions(block=2, layers_every=2))
    steps(model, opt, 2)
    assert [row["step"] for row in sparsifier.trace.layers] == [2, 2]  # read without anyone asking
    assert [row["flip_rate"] for row in sparsifier.trace.layers] == [0.0, 0.0]
    steps(model, opt, 1)
    assert [row["step"] for row in sparsifier.trace.rows()] == [1, 2, 3]
    assert len(sparsifier.trace.layers) == 2
    with pytest.raises(ValueError, match=r"one number, got a tensor of shape \(4,\)"):
        sparsifier.log_loss(torch.ones(4))


def test_nothing_is_traced_of_a_frozen_variance() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsifier = sparsify(
        model,
        opt,
        STEP("2:4", switch=SwitchAt(2)),
        trace=nmstep.TraceOptions(variance_every=1, geometric=True),
    )
    steps(model, opt, 4)
    rows = sparsifier.trace.rows()
    assert [row["z"] is None for row in rows] == [False, False, True, True]
    assert rows[0]["z_unchanged"] == 0


def test_skipped_steps_are_saved() -> None:
    model = net()
    opt = AdamW(model.parameters())
    sparsify(model, opt, nmstep.STE("2:4"), on_nonfinite="skip")
    backward(model)
    model[0].weight.grad[0, 0] = float("nan")  # type: ignore[index]
    opt.step()
    other = net()
    again = AdamW(other.parameters())
    sparsifier = sparsify(other, again, nmstep.STE("2:4"))
    again.load_state_dict(opt.state_dict())
    assert sparsifier.skipped_steps == 1


def test_the_presets_defaults_are_the_papers() -> None:
    assert nmstep.SRSTE("2:4").refine == 2e-4
    step = STEP("2:4", 10)
    assert (step.freeze, step.correct_bias, step.eps_root) == ("all", True, 1e-8)
    assert step.switch == nmstep.AutoSwitch(mean="arithmetic", threshold=1e-8, window=None, clip=(0.1, 0.5))
    assert nmstep.RelativeNorm().bound == 0.5
    assert nmstep.NormRatio().bound == 0.96
