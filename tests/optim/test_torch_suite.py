"""torch's own cases for AdamW, run on nmstep's: dense, with a mask, and with a mask and a frozen variance.

Arguments, errors and schedulers come from the lists that torch tests its AdamW with, so that a case which torch
adds is run here too. docs/optimizer-tests.md says which checks of torch's suite hold and which do not apply.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

import nmstep
from torch_cases import (
    KERNELS,
    RECIPES,
    SWITCH,
    Net,
    backward,
    is_nm,
    latent,
    load,
    same,
    sparsify,
    takes,
    train,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
kinds = pytest.mark.parametrize("kind", list(RECIPES))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="module")
def info() -> Any:
    return load()


def cases(info: Any, dtype: torch.dtype = torch.float32) -> Iterator[dict[str, Any]]:
    """Yields the arguments that torch gives its AdamW on a CPU."""
    found = [dict(case.kwargs) for case in info.optim_inputs_func("cpu", dtype)]
    assert len(found) >= 5
    yield from found


def run(
    kwargs: dict[str, Any], kind: str, *, net: Net | None = None, schedules: Any = (), steps: int = 8
) -> tuple[Net, torch.optim.Optimizer]:
    net = net or Net()
    optimizer = nmstep.AdamW(net.parameters(), **kwargs)
    sparsify(net, optimizer, kind)
    schedulers = [make(optimizer) for make in schedules]
    _loop(net, optimizer, schedulers, steps)
    return net, optimizer


def _loop(net: Net, optimizer: torch.optim.Optimizer, schedulers: list[Any], steps: int) -> None:
    for _ in range(steps):
        loss = optimizer.step(lambda: backward(net, optimizer)).detach()
        for scheduler in schedulers:
            scheduler.step(*([loss] if isinstance(scheduler, lrs.ReduceLROnPlateau) else []))


def test_torch_has_no_kind_of_step_that_is_not_known_here(info: Any) -> None:
    assert set(info.supported_impls) == {"foreach", "differentiable", "fused"}
    assert set(info.not_og_supported_flags) == {*info.supported_impls, "maximize", "capturable"}
    assert not info.supports_sparse
    assert not info.step_requires_closure


@pytest.mark.parametrize("fused", [None, False, True])
def test_errors(info: Any, fused: bool | None) -> None:
    if fused and not KERNELS:
        pytest.skip("needs kernels")
    for case in info.optim_error_inputs_func("cpu", torch.float32):
        given, params = case.optimizer_error_input, case.optimizer_error_input.params
        params = params if params is not None else [nn.Parameter(torch.randn(2, 3))]
        kwargs = {**given.kwargs} if given.kwargs.get("foreach") else {**given.kwargs, "fused": fused}
        assert case.error_on.name == "CONSTRUCTION_ERROR"
        if issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=case.error_regex):
                nmstep.AdamW(params, **kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                nmstep.AdamW(params, **kwargs)


@dtypes
@pytest.mark.parametrize("contiguous", [True, False])
def test_dense_steps_are_torchs_to_the_bit(info: Any, contiguous: bool, dtype: torch.dtype) -> None:
    for kwargs in cases(info, dtype):
        for foreach in (None, False, True):
            ours, theirs = (Net(dtype, contiguous=contiguous) for _ in range(2))
            mine = nmstep.AdamW(ours.parameters(), foreach=foreach, **kwargs)
            other = torch.optim.AdamW(theirs.parameters(), foreach=foreach, **kwargs)
            train(ours, mine)
            train(theirs, other)
            assert same(ours.state_dict(), theirs.state_dict()), (kwargs, foreach)
            assert same(mine.state_dict()["state"], other.state_dict()["state"]), (kwargs, foreach)


@kinds
@pytest.mark.parametrize("contiguous", [True, False])
def test_it_goes_in_the_right_direction(info: Any, kind: str, contiguous: bool) -> None:
    for kwargs in cases(info):
        for schedules in ([], *info.scheduler_inputs):
            if not takes(kind, kwargs):
                continue
            net = Net(contiguous=contiguous)
            # The masks start first: to lose half of the weights is a step in no direction of the optimizer's.
            optimizer = nmstep.AdamW(net.parameters(), **kwargs)
            sparsify(net, optimizer, kind)
            schedulers = [make(optimizer) for make in schedules]
            _loop(net, optimizer, schedulers, SWITCH)
            before = net.loss().item()
            _loop(net, optimizer, schedulers, 20)
            after = net.loss().item()
            assert (after > before) == bool(kwargs.get("maximize")), (kwargs, before, after)
            assert kind == "dense" or is_nm(net)
            repr(optimizer)


@kinds
def test_foreach_and_kernels_match_the_for_loop(info: Any, kind: str) -> None:
    for kwargs in cases(info):
        if not takes(kind, kwargs):
            continue
        loop, in_loop = run({**kwargs, "foreach": False, "fused": False}, kind)
        others = [{"foreach": True, "fused": False}]
        if KERNELS and not kwargs.get("amsgrad"):
            others += [{"fused": True}, {}]
        for other in others:
            net, optimizer = run({**kwargs, **other}, kind)
            assert torch.equal(net.layer.weight == 0, loop.layer.weight == 0), (kwargs, other)
            for a, b in zip(latent(net, optimizer), latent(loop, in_loop), strict=True):
                torch.testing.assert_close(a, b)
            ours, theirs = optimizer.state_dict()["state"], in_loop.state_dict()["state"]
            for index, state in theirs.items():
                for key in state.keys() - {"nmstep"}:
                    torch.testing.assert_close(ours[index][key], state[key], msg=f"{kwargs} {other} {key}")


@kinds
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_tensor_lr(info: Any, kind: str, shape: tuple[int, ...]) -> None:
    for kwargs in cases(info):
        if not takes(kind, kwargs):
            continue
        rate = kwargs.pop("lr", 1e-3)
        schedules = [lambda optimizer: lrs.ExponentialLR(optimizer, gamma=0.9)]
        for eps_root in (0.0, 1e-6):
            of_number = run({**kwargs, "lr": rate, "eps_root": eps_root}, kind, schedules=schedules)[0]
            lr = torch.full(shape, rate)
            net, optimizer = run({**kwargs, "lr": lr, "eps_root": eps_root}, kind, schedules=schedules)
            assert optimizer.param_groups[0]["lr"] is lr  # a scheduler writes to the tensor
            torch.testing.assert_close(net.state_dict(), of_number.state_dict())


@kinds
def test_tensor_betas(kind: str) -> None:
    betas = (torch.tensor([[0.9]]), torch.tensor([0.99]))
    net = run({"betas": betas, "eps_root": 1e-6}, kind)[0]
    torch.testing.assert_close(
        net.state_dict(), run({"betas": (0.9, 0.99), "eps_root": 1e-6}, kind)[0].state_dict()
    )


@kinds
def test_groups_with_their_own_lr(info: Any, kind: str) -> None:
    for kwargs in cases(info):
        if not takes(kind, kwargs):
            continue
        net = Net()
        bias = net.layer.bias.detach().clone()
        optimizer = nmstep.AdamW(net.groups(lr=0.0), **kwargs)
        sparsify(net, optimizer, kind)
        before = latent(net, optimizer)[0]
        train(net, optimizer)
        assert torch.equal(net.layer.bias, bias), kwargs
        assert not torch.equal(latent(net, optimizer)[0], before), kwargs


@kinds
def test_groups_with_their_own_weight_decay(info: Any, kind: str) -> None:
    for kwargs in cases(info):
        if not takes(kind, kwargs):
            continue
        net = Net()
        groups = net.groups(weight_decay=0.0)
        optimizer = nmstep.AdamW(groups, **{**kwargs, "weight_decay": 0.5, "lr": 0.1})
        sparsifier = sparsify(net, optimizer, kind)
        before = latent(net, optimizer)
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        weight, bias = latent(net, optimizer)
        refined = sparsifier is not None and sparsifier.recipe.refine > 0  # SR-STE's term is a gradient, too
        kept = net.layer.weight != 0 if refined else torch.ones_like(weight, dtype=torch.bool)
        torch.testing.assert_close(weight[kept], before[0][kept] * 0.95)
        assert torch.equal(bias, before[1])


@kinds
def test_schedulers_of_every_kind_and_their_state(kind: str) -> None:
    makes = [
        lambda o: lrs.LambdaLR(o, lambda epoch: 0.9**epoch),
        lambda o: lrs.MultiplicativeLR(o, lambda _: 0.9),
        lambda o: lrs.StepLR(o, 2),
        lambda o: lrs.MultiStepLR(o, [2, 4]),
        lambda o: lrs.ConstantLR(o, total_iters=3),
        lambda o: lrs.LinearLR(o, total_iters=4),
        lambda o: lrs.ExponentialLR(o, 0.9),
        lambda o: lrs.PolynomialLR(o, 6),
        lambda o: lrs.CosineAnnealingLR(o, 6),
        lambda o: lrs.CosineAnnealingWarmRestarts(o, 3),
        lambda o: lrs.CyclicLR(o, 1e-4, 1e-2, step_size_up=3),  # moves beta1, too
        lambda o: lrs.OneCycleLR(o, 1e-2, total_steps=20),  # likewise
        lambda o: lrs.ReduceLROnPlateau(o, patience=1),
        lambda o: lrs.SequentialLR(o, [lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)], [3]),
        lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-2, anneal_epochs=4),
    ]
    for make in makes:
        whole, optimizer, scheduler = _scheduled(make, kind)
        _loop(whole, optimizer, [scheduler], 10)
        if kind == "dense":
            theirs, other, of_theirs = _scheduled(make, kind, torch.optim.AdamW)
            _loop(theirs, other, [of_theirs], 10)
            assert same(whole.state_dict(), theirs.state_dict()), scheduler
        first, cut, of_first = _scheduled(make, kind)
        _loop(first, cut, [of_first], 5)
        saved = copy.deepcopy((first.state_dict(), cut.state_dict(), of_first.state_dict()))
        again, other, of_again = _scheduled(make, kind)
        for part, state in zip((again, other, of_again), saved, strict=True):
            part.load_state_dict(state)
        _loop(again, other, [of_again], 5)
        assert same(again.state_dict(), whole.state_dict()), scheduler
        assert same(other.state_dict(), optimizer.state_dict()), scheduler


def _scheduled(make: Any, kind: str, optimizer_class: Any = nmstep.AdamW) -> tuple[Net, Any, Any]:
    net = Net()
    optimizer = optimizer_class(net.parameters(), lr=1e-2)
    sparsify(net, optimizer, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR's own, of the order of its first step
        return net, optimizer, make(optimizer)


@kinds
def test_without_gradients_a_step_is_none(info: Any, kind: str) -> None:
    for kwargs in cases(info):
        if not takes(kind, kwargs):
            continue
        for requires_grad in (True, False):
            net, optimizer = run(kwargs, kind, steps=SWITCH + 1)
            before = latent(net, optimizer), copy.deepcopy(optimizer.state_dict())
            optimizer.zero_grad()
            net.requires_grad_(requires_grad)
            optimizer.step()
            assert same((latent(net, optimizer), optimizer.state_dict()), before), kwargs
            net.requires_grad_(True)
            train(net, optimizer, 1)  # and goes on


@kinds
def test_a_parameter_frozen_for_a_while_stays_as_it_is(kind: str) -> None:
    net, optimizer = run({"lr": 0.1}, kind, steps=SWITCH + 1)
    weight, bias = latent(net, optimizer)
    net.layer.weight.requires_grad_(False)
    train(net, optimizer, 3)
    after = latent(net, optimizer)
    assert torch.equal(after[0], weight)
    assert not torch.equal(after[1], bias)
    net.layer.weight.requires_grad_(True)
    train(net, optimizer, 3)
    assert not torch.equal(latent(net, optimizer)[0], weight)
    assert kind == "dense" or is_nm(net)


@kinds
def test_zero_gradients_and_no_decay_change_no_weight(info: Any, kind: str) -> None:
    for kwargs in cases(info):
        if not takes(kind, kwargs):
            continue
        for fused in (None, False):
            net = Net()
            optimizer = nmstep.AdamW(net.parameters(), **{**kwargs, "weight_decay": 0.0, "fused": fused})
            recipe = (
                nmstep.STE("2:4") if kind == "sparse" else None
            )  # SR-STE's term is no gradient of the user's
            if recipe is not None:
                nmstep.sparsify(net, optimizer, recipe)
            else:
                sparsify(net, optimizer, kind)
            before = latent(net, optimizer)
            for _ in range(SWITCH + 2):
                for p in net.parameters():
                    p.grad = torch.zeros_like(p)
                optimizer.step()
            assert same(latent(net, optimizer), before), kwargs


@kinds
def test_lr_zero_changes_no_weight(info: Any, kind: str) -> None:
    for kwargs in cases(info):
        if takes(kind, kwargs):
            net = Net()
            before = [p.detach().clone() for p in net.parameters()]
            net, optimizer = run({**kwargs, "lr": 0.0}, kind, net=net)
            assert same(latent(net, optimizer), before), kwargs
            assert optimizer.state_dict()["state"][0]["step"] == 8  # steps they are, for the moments


@kinds
@pytest.mark.parametrize("kwargs", [{"foreach": True}, {"foreach": False}, {"fused": False}, {}], ids=str)
def test_parameters_of_mixed_dtypes(kind: str, kwargs: dict[str, Any]) -> None:
    nets = nn.ModuleList(Net(dtype) for dtype in DTYPES[:3])
    optimizer = nmstep.AdamW(nets.parameters(), lr=1e-2, **kwargs)
    sparsify(nets, optimizer, kind)
    for _ in range(6):
        optimizer.zero_grad()
        sum(net.loss().float() for net in nets).backward()
        optimizer.step()
    for net, dtype in zip(nets, DTYPES, strict=False):
        alone = Net(dtype)
        one = nmstep.AdamW(alone.parameters(), lr=1e-2, **kwargs)
        sparsify(alone, one, kind)
        train(alone, one)
        torch.testing.assert_close(net.state_dict(), alone.state_dict())  # kernels step all of them or none
        assert all(optimizer.state[p]["exp_avg"].dtype == dtype for p in net.parameters())


@kinds
def test_another_default_dtype(kind: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        net, optimizer = run({}, kind, net=Net(torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    state = optimizer.state_dict()["state"][0]
    assert (state["step"].dtype, state["exp_avg"].dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(net.state_dict(), run({}, kind)[0].state_dict())
