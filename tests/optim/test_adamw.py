"""nmstep.AdamW equals torch's to the bit while dense, and says clearly what it does not do."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import AdamW
from nmstep.kernels import status
from nmstep.optim.adamw import FROZEN


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).to(dtype)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 20) -> None:
    generator = torch.Generator().manual_seed(7)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 16, generator=generator).to(dtype)).square().mean().backward()
        optimizer.step()


def equal(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("foreach", [False, True, None])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"amsgrad": True},
        {"maximize": True, "weight_decay": 0.3},
        {"betas": (0.5, 0.9), "eps": 1e-3},
        {"lr": 0.1},
    ],
)
def test_dense_steps_equal_torch_to_the_bit(
    arguments: dict[str, Any], foreach: bool | None, dtype: torch.dtype
) -> None:
    ours, theirs = model(dtype), model(dtype)
    mine = AdamW(ours.parameters(), foreach=foreach, **arguments)
    other = torch.optim.AdamW(theirs.parameters(), foreach=foreach, **arguments)
    train(ours, mine)
    train(theirs, other)
    equal(ours, theirs)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.state[p].keys() == other.state[q].keys()
        for key, value in mine.state[p].items():
            assert torch.equal(value, other.state[q][key])


@pytest.mark.parametrize("foreach", [False, True])
def test_coupled_decay_equals_torchs_adam(foreach: bool) -> None:
    ours, theirs = model(), model()
    train(ours, AdamW(ours.parameters(), weight_decay=0.1, foreach=foreach, decoupled_weight_decay=False))
    train(theirs, torch.optim.Adam(theirs.parameters(), weight_decay=0.1, foreach=foreach))
    equal(ours, theirs)


def test_the_signature_is_torchs_and_three_arguments_more() -> None:
    mine = inspect.signature(AdamW.__init__).parameters
    theirs = inspect.signature(torch.optim.AdamW.__init__).parameters
    assert list(mine)[: len(theirs)] == list(theirs)
    assert list(mine)[len(theirs) :] == ["decoupled_weight_decay", "eps_root", "state_dtype"]
    for name in theirs:
        assert mine[name].default == theirs[name].default
        assert mine[name].kind == theirs[name].kind


def test_parameters_come_in_every_form() -> None:
    net = model()
    AdamW(net.named_parameters())
    optimizer = AdamW([{"params": [net[0].weight], "lr": 0.5}, {"params": [net[0].bias], "eps_root": 1e-4}])
    assert [group["eps_root"] for group in optimizer.param_groups] == [0.0, 1e-4]
    optimizer.add_param_group({"params": [net[2].weight]})
    assert optimizer.param_groups[2]["eps_root"] == 0.0
    with pytest.raises(ValueError, match="empty"):
        AdamW([])


@pytest.mark.parametrize("amsgrad", [False, True])
def test_eps_root_is_a_floor_inside_the_root(amsgrad: bool) -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = AdamW([p], lr=0.1, weight_decay=0.0, eps=1e-3, eps_root=0.5, amsgrad=amsgrad)
    w, m, v, largest = p.detach().clone(), 0.0, torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    for t, g in enumerate(([3.0, 1e-4], [0.1, 2.0]), start=1):
        p.grad = torch.tensor(g, dtype=torch.float64)
        m, v = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2
        largest = torch.maximum(largest, v)
        hat = (largest if amsgrad else v) / (1 - 0.999**t)
        w = w - 0.1 * (m / (1 - 0.9**t)) / ((hat + 0.5).sqrt() + 1e-3)
        optimizer.step()
    assert torch.allclose(p.detach(), w, rtol=1e-12)


def test_frozen_variance_is_neither_read_for_update_nor_written() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    train(net, optimizer, 5)
    before = {p: optimizer.state[p]["exp_avg_sq"].clone() for p in net.parameters()}
    optimizer.freeze_variance_()
    for p, v in before.items():
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], v / (1 - 0.999**5))
    frozen = {p: optimizer.state[p]["exp_avg_sq"].clone() for p in net.parameters()}
    train(net, optimizer, 5)
    optimizer.freeze_variance_()  # a second time changes nothing
    for p, v in frozen.items():
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], v)
        assert optimizer.state[p]["step"] == 10


def test_only_the_chosen_parameters_freeze() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    train(net, optimizer, 3)
    optimizer.freeze_variance_([net[0].weight], eps_root=1e-6)
    assert [optimizer.state[p].get(FROZEN) for p in net.parameters()] == [1e-6, None, None, None]


def test_a_parameter_without_a_gradient_has_nothing_to_freeze() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    optimizer.freeze_variance_()
    assert not optimizer.state
    train(net, optimizer, 1)
    assert all(FROZEN not in state for state in optimizer.state.values())


def test_frozen_state_survives_a_file_and_a_copy() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    train(net, optimizer, 3)
    optimizer.freeze_variance_()
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = model()
    other = AdamW(again.parameters())
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(net, optimizer, 3)
    train(again, other, 3)
    equal(net, again)
    assert copy.deepcopy(optimizer).state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fused": True, "foreach": True}, r"two kinds of step"),
        ({"capturable": True, "amsgrad": True}, r"kernels of capturable=True do not know amsgrad=True"),
        (
            {"capturable": True, "fused": False},
            r"capturable=True needs the kernels that fused=False turns off",
        ),
        ({"differentiable": True}, "does not support differentiable=True"),
        ({"eps_root": -1.0}, "Invalid eps_root"),
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AdamW(model().parameters(), **arguments)


def test_parameters_and_gradients_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"complex parameters: number 0 is torch\.complex64"):
        AdamW([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.eye(2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        AdamW([p]).step()
    q = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"amsgrad=True has no single variance"):
        AdamW([q], amsgrad=True).freeze_variance_()
    with pytest.raises(ValueError, match="Invalid eps_root"):
        AdamW([q]).freeze_variance_(eps_root=-1)


def test_step_runs_the_closure_and_schedulers_work() -> None:
    net = model()
    optimizer = AdamW(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(1, 16)).sum()
        loss.backward()
        return loss

    assert isinstance(optimizer.step(closure), Tensor)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_capturable_on_a_cpu_is_a_step_by_the_kernels(lr: float | Tensor) -> None:
    found = []
    for arguments in ({"capturable": True}, {"fused": True if status().active != "torch" else None}):
        net = model()
        optimizer = AdamW(net.parameters(), lr=lr, **arguments)
        sparsifier = nmstep.sparsify(net, optimizer, nmstep.STEP("2:4", switch=nmstep.SwitchAt(2)))
        train(net, optimizer, 5)
        assert not sparsifier.ready_to_capture  # there is no graph of a CPU's work
        found.append((net, optimizer))
    torch.testing.assert_close(found[0][0].state_dict(), found[1][0].state_dict(), rtol=1e-5, atol=1e-7)
    states = [optimizer.state_dict()["state"] for _, optimizer in found]
    for index, state in states[0].items():
        for key in state.keys() - {"nmstep"}:
            torch.testing.assert_close(state[key], states[1][index][key], rtol=1e-5, atol=1e-9)
