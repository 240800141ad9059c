"""What torch's suite asks of an optimizer's state, hooks and copies, dense and sparse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import nmstep
from torch_cases import RECIPES, SWITCH, Net, backward, is_nm, latent, load, same, sparsify, takes, train

kinds = pytest.mark.parametrize("kind", list(RECIPES))


@pytest.fixture(scope="module")
def info() -> Any:
    return load()


def make(kind: str, steps: int = 0, *, named: bool = False, **kwargs: Any) -> tuple[Net, nmstep.AdamW]:
    net = Net()
    optimizer = nmstep.AdamW(net.named_parameters() if named else net.parameters(), **{"lr": 0.01, **kwargs})
    sparsify(net, optimizer, kind)
    train(net, optimizer, steps)
    return net, optimizer


def goes_on(net: Net, optimizer: nmstep.AdamW, whole: Net, steps: int = 3) -> None:
    train(net, optimizer, steps)
    assert same(net.state_dict(), whole.state_dict())


@kinds
@pytest.mark.parametrize("file", [False, True])
def test_a_state_round_trip_is_deterministic(info: Any, kind: str, file: bool) -> None:
    for case in info.optim_inputs_func("cpu", torch.float32):
        if not takes(kind, case.kwargs):
            continue
        net, optimizer = make(kind, 5, **case.kwargs)
        saved: Any = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
        if file:
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
        before = copy.deepcopy(saved)
        again, other = make(kind, **case.kwargs)
        again.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
        assert same(saved, before)  # loading changes nothing in it
        assert same(other.state_dict(), optimizer.state_dict())
        train(net, optimizer, 3)
        goes_on(again, other, net)


@kinds
def test_states_of_older_versions_load(info: Any, kind: str) -> None:
    net, optimizer = make(kind, 5)
    whole, saved = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(net, optimizer, 3)
    for flag in (*info.not_og_supported_flags, "amsgrad", "decoupled_weight_decay", "eps_root"):
        state = copy.deepcopy(saved)
        for group in state["param_groups"]:
            group.pop(flag, None)
        again, other = make(kind)
        again.load_state_dict(whole)
        other.load_state_dict(state)
        goes_on(again, other, net)


@kinds
def test_a_step_that_is_a_number_loads(kind: str) -> None:
    net, optimizer = make(kind, 5)
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry["step"] = entry["step"].item()
    again, other = make(kind)
    again.load_state_dict(net.state_dict())
    other.load_state_dict(state)
    assert isinstance(other.state[again.layer.bias]["step"], torch.Tensor)
    train(net, optimizer, 3)
    goes_on(again, other, net)


@kinds
@pytest.mark.parametrize(("saved", "loaded"), [(True, False), (False, True), (True, True)])
def test_named_and_unnamed_states_load_into_each_other(kind: str, saved: bool, loaded: bool) -> None:
    net, optimizer = make(kind, 5, named=saved)
    again, other = make(kind, named=loaded)
    again.load_state_dict(net.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    names = ["layer.weight", "layer.bias"]
    assert other.param_groups[0].get("param_names") == (names if saved or loaded else None)
    train(net, optimizer, 3)
    goes_on(again, other, net)


def by_names(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Puts the state of a file into this optimizer's order; what torch's documentation has a hook do."""
    names = [name for group in state_dict["param_groups"] for name in group["param_names"]]
    own = [name for group in optimizer.param_groups for name in group["param_names"]]
    state = {i: state_dict["state"][names.index(name)] for i, name in enumerate(own)}
    groups = [{**state_dict["param_groups"][0], "param_names": own}]
    return {"state": state, "param_groups": groups}


@kinds
def test_parameters_in_another_order_are_sorted_by_a_hook(kind: str) -> None:
    net, optimizer = make(kind, 5, named=True)
    again = Net()
    other = nmstep.AdamW(reversed(list(again.named_parameters())), lr=0.01)
    # Before the sparsifier's own hook, which reads the state where it stands.
    other.register_load_state_dict_pre_hook(by_names)
    sparsify(again, other, kind)
    again.load_state_dict(net.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, 3)
    goes_on(again, other, net)


@pytest.mark.parametrize("kind", ["sparse", "step"])
def test_parameters_in_another_order_are_refused_without_one(kind: str) -> None:
    net, optimizer = make(kind, 5, named=True)
    again = Net()
    other = nmstep.AdamW(reversed(list(again.named_parameters())), lr=0.01)
    sparsify(again, other, kind)
    again.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=r"lacks|no 'pruned' part of shape \(16, 8\)"):
        other.load_state_dict(optimizer.state_dict())


def test_equal_shapes_in_another_order_are_found_at_the_next_step() -> None:
    def pair(order: int) -> tuple[nn.Module, nmstep.AdamW]:
        torch.manual_seed(0)
        nets = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))
        optimizer = nmstep.AdamW(list(nets.parameters())[::order], lr=0.1)
        nmstep.sparsify(nets, optimizer, nmstep.SRSTE("2:4"))
        return nets, optimizer

    def step(nets: nn.Module, optimizer: nmstep.AdamW) -> None:
        optimizer.zero_grad()
        sum(net(torch.ones(8)).square().sum() for net in nets).backward()
        optimizer.step()

    nets, optimizer = pair(1)
    step(nets, optimizer)
    again, other = pair(-1)
    again.load_state_dict(nets.state_dict())
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="no longer zero where its mask cut"):
        step(again, other)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": True}, {"capturable": True}], ids=str)
def test_torchs_own_states_load_and_go_on(flags: dict[str, Any]) -> None:
    theirs = Net()
    torchs = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    train(theirs, torchs, 5)
    state = copy.deepcopy(torchs.state_dict())
    for group in state["param_groups"]:
        group |= flags  # as where they were saved on a GPU
    ours, mine = make("dense")
    ours.load_state_dict(theirs.state_dict())
    mine.load_state_dict(state)
    group = mine.param_groups[0]
    assert (group["capturable"], group["differentiable"], group["fused"]) == (False, False, None)
    train(theirs, torchs, 3)
    train(ours, mine, 3)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_our_states_load_into_torchs() -> None:
    net, optimizer = make("step", 6)
    optimizer._nmstep_sparsifier.finalize()  # type: ignore[attr-defined]
    again = Net()
    torchs = torch.optim.AdamW(again.parameters(), lr=0.01)
    again.load_state_dict(net.state_dict())
    torchs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, 3)
    train(again, torchs, 3)
    torch.testing.assert_close(again.state_dict(), net.state_dict())


def test_a_copy_of_a_dense_optimizer_is_whole() -> None:
    for kwargs in (
        {},
        {"fused": True} if nmstep.kernels.status().active != "torch" else {},
        {"eps_root": 1e-6},
    ):
        net, optimizer = make("dense", 4, **kwargs)
        for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            public = {name for name in vars(optimizer) if not name.startswith("_")}
            assert {name for name in vars(copied) if not name.startswith("_")} == public
            assert same(copied.state_dict(), optimizer.state_dict())
            assert copied.defaults == optimizer.defaults
        again, other = copy.deepcopy((net, optimizer))  # the copied optimizer holds the copied parameters
        train(net, optimizer, 3)
        goes_on(again, other, net)


@pytest.mark.parametrize("kind", ["sparse", "step"])
@pytest.mark.parametrize("through", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_a_sparse_optimizer_says_that_it_lost_its_hooks(
    kind: str, through: Callable[..., Any]
) -> None:
    net, optimizer = make(kind, 5)
    again, other = through((net, optimizer))
    assert latent(again, other)[0].equal(latent(net, optimizer)[0])  # nothing is lost but the hooks
    backward(again, other)
    with pytest.raises(RuntimeError, match="no sparsifier is attached"):
        other.step()


@kinds
def test_step_hooks_come_in_their_order(kind: str) -> None:
    net, optimizer = make(kind)
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("all before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("all after")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
    ]
    train(net, optimizer, 2)
    assert calls == ["all before", "before", "after", "all after"] * 2
    for handle in handles:
        handle.remove()
    train(net, optimizer, SWITCH)
    assert len(calls) == 8
    whole = make(kind, 2 + SWITCH)[0]
    assert same(net.state_dict(), whole.state_dict())


@kinds
def test_hooks_on_saving_and_loading(kind: str) -> None:
    net, optimizer = make(kind, 5)
    calls: list[str] = []

    def halve(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": group["lr"] / 2} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    optimizer.register_state_dict_pre_hook(lambda _: calls.append("save"))
    optimizer.register_state_dict_post_hook(halve)
    saved = optimizer.state_dict()
    again, other = make(kind)
    other.register_load_state_dict_pre_hook(halve)
    other.register_load_state_dict_pre_hook(lambda *_: calls.append("first"), prepend=True)
    other.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    other.register_load_state_dict_post_hook(lambda _: calls.append("early"), prepend=True)
    again.load_state_dict(net.state_dict())
    other.load_state_dict(saved)
    assert calls == ["save", "first", "early", "loaded"]
    assert other.param_groups[0]["lr"] == 0.01 / 4
    assert same(latent(again, other), latent(net, optimizer))


@kinds
def test_every_state_is_filled_after_a_step(kind: str) -> None:
    net, optimizer = make(kind, 1)
    assert all(state.keys() >= {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())
    assert len(optimizer.state) == len(list(net.parameters()))


@kinds
def test_found_inf_and_grad_scale(kind: str) -> None:
    net, optimizer = make(kind, 5)
    before = latent(net, optimizer), copy.deepcopy(optimizer.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer.zero_grad()
    scaler.scale(net.loss() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert same((latent(net, optimizer), optimizer.state_dict()), before)
    assert scaler.get_scale() == 2.0


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")  # torch 2.11's
@kinds
def test_the_profiler_shows_steps_by_name(kind: str) -> None:
    net, optimizer = make(kind)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(net, optimizer, 2)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#AdamW.step"] == 2
    assert counts["Optimizer.zero_grad#AdamW.zero_grad"] == 2


@kinds
def test_zero_grad(kind: str) -> None:
    net, optimizer = make(kind, SWITCH + 1)
    backward(net, optimizer)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in net.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@kinds
def test_sparse_gradients_are_refused_and_nothing_is_lost(kind: str) -> None:
    net, optimizer = make(kind, 5)
    before = latent(net, optimizer)
    backward(net, optimizer)
    net.layer.weight.grad = net.layer.weight.grad.to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    state = optimizer.state_dict()  # ends the interrupted step
    assert same(latent(net, optimizer), before)
    assert kind == "dense" or is_nm(net)
    assert state["state"][1]["step"] == 5
    train(net, optimizer, 1)  # and goes on


@kinds
def test_groups_are_added_while_training(kind: str) -> None:
    net, optimizer = make(kind, 5)
    more = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [more], "lr": 0.5, "weight_decay": 0.0})
    assert optimizer.param_groups[1]["eps_root"] == 0.0
    more.grad = torch.ones(3)
    backward_weights = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    assert torch.allclose(more, torch.full((3,), 0.5), atol=1e-6)
    assert not same(backward_weights, [p.detach() for p in net.parameters()])
    assert kind == "dense" or is_nm(net)
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        optimizer.add_param_group({"params": [more]})
    with pytest.raises(ValueError, match="non-leaf"):
        optimizer.add_param_group({"params": [more * 2]})


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ({"capturable": True}, "does not support capturable=True"),
        ({"differentiable": True}, "does not support differentiable=True"),
        ({"fused": True}, "does not support fused=True; give fused to the optimizer"),
        ({"eps_root": -1.0}, "Invalid eps_root"),
    ],
)
def test_what_a_group_cannot_ask_for(group: dict[str, Any], says: str) -> None:
    p, q = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    with pytest.raises(ValueError, match=says):
        nmstep.AdamW([{"params": [p], **group}])
    optimizer = nmstep.AdamW([p])
    with pytest.raises(ValueError, match=says):
        optimizer.add_param_group({"params": [q], **group})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_are_refused() -> None:
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="complex parameters"):
        nmstep.AdamW([z])
    optimizer = nmstep.AdamW([nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match="complex parameters"):
        optimizer.add_param_group({"params": [z]})
    assert len(optimizer.param_groups) == 1


@kinds
def test_a_step_is_not_captured_in_a_cuda_graph(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer = make(kind, SWITCH + 1)
    before = latent(net, optimizer)
    backward(net, optimizer)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
        optimizer.step()
    assert same(latent(net, optimizer), before)
    other = torch.optim.SGD(net.parameters(), lr=0.1)
    if kind == "sparse":  # other optimizers are asked by the sparsifier alone
        optimizer._nmstep_sparsifier.finalize()
        nmstep.sparsify(net, other, nmstep.STE("2:4"))
        with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
            other.step()
