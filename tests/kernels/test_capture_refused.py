"""What cannot be captured in a CUDA graph, and replays that were not due: told, with nothing changed."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from torch import nn

import nmstep
from nmstep import AdamW, late, sparsify
from nmstep.kernels import native
from nmstep.optim.moments import count_

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a graph is captured for real there: test_cuda_graph.py", allow_module_level=True)

from capturable import RECIPES, Training, made
from emulated_graph import Emulator
from nmstep.kernels.gpu.tables import Tables


def cases() -> dict[str, tuple[Any, str]]:
    """Returns what is done before the capture of a step of a Training, and what it says."""

    def without_gradients(t: Training) -> None:
        t.iteration = lambda: (t.optimizer.zero_grad(), t.optimizer.step())  # type: ignore[method-assign, assignment]

    def with_closure(t: Training) -> None:
        t.iteration = lambda: t.optimizer.step(lambda: torch.zeros(()))  # type: ignore[method-assign]

    def half_a_gradient(t: Training) -> None:
        next(t.model.parameters()).requires_grad_(False)

    def scaled(t: Training) -> None:
        t.optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]

    def tensor_betas(t: Training) -> None:
        t.optimizer.param_groups[0]["betas"] = (torch.tensor(0.9), torch.tensor(0.99))

    def elsewhere(t: Training) -> None:
        t.optimizer.param_groups[0]["lr"] = torch.zeros((), device="meta")

    def no_triton(_: Training) -> None:
        os.environ["NMSTEP_KERNELS"] = "torch"
        native._load.cache_clear()

    def wide(t: Training) -> None:
        for state in t.optimizer.state.values():
            state["exp_avg"] = state["exp_avg"].double()

    return {
        "closure": (with_closure, "it was given a closure"),
        "no gradient": (without_gradients, "no parameter has a gradient"),
        "other gradients": (half_a_gradient, "in one pass|of the same kind; take one first"),
        "scaler": (scaled, "a gradient scaler wants the host"),
        "betas": (tensor_betas, "betas are tensors"),
        "lr": (elsewhere, "the learning rate is a tensor on meta, and the parameters are on cpu"),
        "no kernels": (no_triton, "there are no kernels in Triton for cpu"),
        "moments": (wide, "in one pass|do not take every tensor of it"),
    }


@pytest.mark.parametrize("recipe", [None, "sr-ste"])
@pytest.mark.parametrize("case", cases())
def test_steps_that_cannot_be_captured(
    recipe: str | None, case: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMSTEP_KERNELS", "triton")  # and back, after the test
    training = made(recipe)
    training.next_batch()
    training.optimizer.zero_grad()
    before = {name: value.clone() for name, value in training.tensors().items()}
    change, says = cases()[case]
    change(training)
    with pytest.raises(RuntimeError, match=rf"cannot be captured in a CUDA graph: .*({says})"):
        training.capture(emulator)
    for name, value in training.tensors().items():
        assert torch.equal(value, before[name].to(value.dtype)), name


@pytest.mark.parametrize(
    ("training", "says"),
    [
        (lambda: made("sr-ste", capturable=False), "was made without capturable=True"),
        (lambda: made(None, capturable=False), "was made without capturable=True"),
        (lambda: made("sr-ste", on_nonfinite="skip"), "on_nonfinite='skip' looks at the gradients"),
        (lambda: Training(RECIPES["sr-ste"]), "no step was taken since"),
        (lambda: Training(None), "the step before was not an ordinary one"),
        (lambda: Training(nmstep.ASP("2:4", start=1)).run(3), "a mask is chosen once"),
        (
            lambda: Training(nmstep.STEP("2:4", 20, switch=nmstep.AutoSwitch(mean="geometric"))).run(2),
            "no kernel sums up logarithms",
        ),
        (lambda: Training(nmstep.STEP("2:4", switch=nmstep.SwitchAt(3))).run(3), "of the same kind"),
        (lambda: Training(nmstep.DecayingMask("1:4", 0, interval=2)).run(1), "of the same kind"),
    ],
)
def test_trainings_that_cannot_be_captured(training: Any, says: str, emulator: Emulator) -> None:
    training = training()
    if training.sparsifier is not None:
        assert not training.sparsifier.ready_to_capture
    training.next_batch()
    with pytest.raises(RuntimeError, match=f"cannot be captured in a CUDA graph: .*{says}"):
        training.capture(emulator)
    training.iteration()  # goes on as ever
    if training.sparsifier is not None:
        assert training.sparsifier.step == training.step


def test_other_optimizers_steps_cannot_be_captured(emulator: Emulator) -> None:
    training = made(None)
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)  # type: ignore[assignment]
    training.sparsifier = sparsify(training.model, training.optimizer, nmstep.STE("2:4"))
    training.iteration()
    assert not training.sparsifier.ready_to_capture
    with pytest.raises(RuntimeError, match=r"captured in a CUDA graph: SGD is not nmstep\.AdamW"):
        training.capture(emulator)


def test_replays_that_were_not_due_are_told(emulator: Emulator) -> None:
    def rate(t: Training) -> None:
        t.optimizer.param_groups[1]["lr"] = 1e-3

    def decay(t: Training) -> None:
        t.optimizer.param_groups[0]["weight_decay"] = 0.5

    def state(t: Training) -> None:
        t.optimizer.load_state_dict(t.optimizer.state_dict())

    for change, says in (
        (rate, "before the learning rate changed"),
        (decay, "before a setting of a parameter group changed"),
        (state, "where a parameter or its state lies changed"),
    ):
        training = made("sr-ste")
        training.optimizer.param_groups[1]["lr"] = 1e-2
        training.iteration()
        graph = training.capture(emulator)
        graph.replay()
        assert training.sparsifier is not None
        assert not training.sparsifier.replayed()
        change(training)
        graph.replay()
        with pytest.raises(RuntimeError, match=says):
            training.sparsifier.replayed()
        assert training.sparsifier.step == 4


@pytest.mark.parametrize(
    ("recipe", "says"),
    [("step, updated", "before the phase, a pattern, where"), ("decaying", "before the phase,")],
)
def test_a_graph_is_of_no_use_after_replayed_said_so(recipe: str, says: str, emulator: Emulator) -> None:
    training = made(recipe)
    assert training.sparsifier is not None
    graph = training.capture(emulator)
    for _ in range(10):
        graph.replay()
        if training.sparsifier.replayed():
            break
    assert training.sparsifier.phase == "sparse"
    graph.replay()
    with pytest.raises(RuntimeError, match=says):
        training.sparsifier.replayed()


def test_a_pattern_that_is_due_ends_a_graph(emulator: Emulator) -> None:
    training = made("decaying")
    training.run(2)
    assert training.sparsifier is not None
    graph = training.capture(emulator)
    graph.replay()
    assert not training.sparsifier.replayed()
    graph.replay()
    assert training.sparsifier.replayed()
    graph.replay()
    with pytest.raises(RuntimeError, match="before a pattern changed"):
        training.sparsifier.replayed()


def test_an_ordinary_step_may_end_a_graph_too(emulator: Emulator) -> None:
    training = made("step, updated")
    graph = training.capture(emulator)
    training.run(3)
    assert training.sparsifier is not None
    assert training.sparsifier.phase == "sparse"
    graph.replay()
    with pytest.raises(RuntimeError, match="before the phase,"):
        training.sparsifier.replayed()


def test_replays_of_nothing_are_told(emulator: Emulator) -> None:
    training = made("sr-ste")
    assert training.sparsifier is not None
    with pytest.raises(RuntimeError, match="no step of this optimizer was captured"):
        training.sparsifier.replayed()
    training.capture(emulator)
    with (
        training.sparsifier.latent(),
        pytest.raises(RuntimeError, match=r"no replayed\(\) inside sparsifier.latent\(\)"),
    ):
        training.sparsifier.replayed()
    with pytest.raises(RuntimeError, match="no step of this optimizer was captured"):
        emulator.capture(training.sparsifier.replayed, [])


@pytest.mark.usefixtures("away")
def test_a_gradient_that_is_not_finite_in_a_replay_is_told_late(emulator: Emulator) -> None:
    training = made("sr-ste")
    graph = training.capture(emulator)
    assert training.sparsifier is not None
    for step in range(late.LATE_STEPS + 1):
        training.next_batch()
        if step == 0:
            training.x[0, 0] = torch.nan
        graph.replay()
        if step < late.LATE_STEPS:
            training.sparsifier.replayed()
    with pytest.raises(FloatingPointError, match=r"optimizer step 3 in '0.weight'.*seen now"):
        training.sparsifier.replayed()
    ignored = made("sr-ste", on_nonfinite="ignore")
    graph = ignored.capture(emulator)
    ignored.x.fill_(torch.nan)
    graph.replay()
    assert ignored.sparsifier is not None
    ignored.sparsifier.replayed()
    ignored.sparsifier.finalize()


def test_what_kernels_do_not_take_is_counted_on_the_device_all_the_same(emulator: Emulator) -> None:
    found = []
    for capturable in (True, False):
        torch.manual_seed(2)
        p = nn.Parameter(torch.randn(4, 8, dtype=torch.float64))
        optimizer = AdamW([p], capturable=capturable, eps_root=1e-6)
        for _ in range(3):
            p.grad = torch.randn(4, 8, dtype=torch.float64)
            optimizer.step()
        optimizer.freeze_variance_()
        optimizer.unfreeze_variance_()
        found.append((p, optimizer))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(*(o.state_dict()["state"] for _, o in found))
    with pytest.raises(RuntimeError, match="the kernels do not take every tensor of it"):
        emulator.capture(found[0][1].step, [])


def test_a_state_of_another_adamw_is_counted_where_this_one_counts() -> None:
    training = made(None)
    theirs = torch.optim.AdamW(training.model.parameters())
    training.iteration()
    theirs.step()
    saved = theirs.state_dict()
    saved["param_groups"] = [
        {**group, "params": g["params"]}
        for group, g in zip(
            saved["param_groups"] * 2, training.optimizer.state_dict()["param_groups"], strict=True
        )
    ]
    training.optimizer.load_state_dict(saved)
    assert all(group["capturable"] for group in training.optimizer.param_groups)
    assert all(s["step"].dtype == torch.float32 for s in training.optimizer.state.values())
    again = copy.deepcopy(training.optimizer)
    assert all(group["capturable"] for group in again.param_groups)
    p = nn.Parameter(torch.zeros(2))
    training.optimizer.add_param_group({"params": [p]})
    assert training.optimizer.param_groups[2]["capturable"]


def test_steps_are_counted_where_they_are_asked_to_be() -> None:
    state = {"step": torch.tensor(7.0, dtype=torch.float64)}
    count_(state, torch.device("cpu"))
    assert state["step"].dtype == torch.float64  # as it was saved
    count_(state, torch.device("meta"))
    assert (state["step"].device.type, state["step"].dtype) == ("meta", torch.float32)


def test_tables_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    tables = Tables()
    one = tables.get(cpu, "one", lambda: torch.tensor([1, 2]))
    for key in range(100):
        tables.get(cpu, key, lambda: torch.zeros(1))
    assert tables.get(cpu, "one", lambda: torch.tensor([1, 2])) is not one  # forgotten, and made anew
    tables = Tables()
    one = tables.get(cpu, "one", lambda: torch.tensor([1, 2]))
    tables.make_room(cpu)
    monkeypatch.setattr(late, "is_capturing", lambda: True)
    assert tables.get(cpu, "one", lambda: torch.tensor([1, 2])) is one
    assert torch.equal(tables.get(cpu, "two", lambda: torch.tensor([3, 4])), torch.tensor([3, 4]))
    with pytest.raises(RuntimeError, match="there is no room for a table that its kernels read"):
        tables.get(cpu, "three", lambda: torch.tensor([5, 6]))
    tables.hold_room()
    monkeypatch.setattr(late, "is_capturing", lambda: False)
    two = tables.get(cpu, "two", lambda: torch.tensor([3, 4]))  # what a replay would write is not there yet
    assert torch.equal(two, torch.tensor([3, 4]))
