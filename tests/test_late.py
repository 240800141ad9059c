"""What a GPU tells is read some steps late; here the CPU plays the GPU."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

import nmstep
from nmstep import AdamW, late, sparsify, trace
from nmstep.late import LATE_STEPS, Late
from nmstep.optim import gradients
from tiny import backward, net, steps

RECIPE = nmstep.STEP("2:4", 40, switch=nmstep.AutoSwitch(window=5, clip=(0.1, 0.4)))


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (late, gradients, trace):
        monkeypatch.setattr(module, "is_away", lambda _: True)


def trained(count: int) -> tuple[torch.nn.Module, AdamW, nmstep.Sparsifier]:
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    sparsifier = sparsify(model, optimizer, RECIPE)
    steps(model, optimizer, count)
    return model, optimizer, sparsifier


def test_what_lies_here_is_due_at_once() -> None:
    queue = Late()
    queue.put(3, torch.ones(1))
    assert queue.due(2) == []
    assert queue.due(3) == [(3, torch.ones(1))]
    assert queue.pending() == []


@pytest.mark.usefixtures("away")
def test_what_lies_away_is_due_later_and_in_order() -> None:
    queue = Late()
    found = []
    for step in range(1, 9):
        queue.put(step, torch.tensor(float(step)))
        found.append([s for s, _ in queue.due(step)])
    assert found == [[]] * LATE_STEPS + [[1], [2], [3], [4]]
    assert [s for s, _ in queue.pending()] == [5, 6, 7, 8]


def test_the_switch_acts_late_by_as_many_steps(request: pytest.FixtureRequest) -> None:
    here = trained(30)[2]
    request.getfixturevalue("away")
    there = trained(30)[2]
    assert here.switch_step is not None
    assert there.switch_step == here.switch_step + LATE_STEPS
    assert there.switch_reason == here.switch_reason
    z = [[row["z"] for row in s.trace.rows()][: here.switch_step] for s in (here, there)]
    assert z[0] == z[1]


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("cut", [2, 7, 17, 19, 22])
def test_a_run_resumes_with_what_was_still_on_its_way(cut: int) -> None:
    model, _, whole = trained(30)
    first, optimizer, _ = trained(cut)
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file)
    again, optimizer, rest = trained(0)
    again.load_state_dict(weights)
    optimizer.load_state_dict(state)
    steps(again, optimizer, 30 - cut, first=cut)
    assert rest.switch_step == whole.switch_step
    for p, q in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.usefixtures("away")
def test_a_gradient_that_is_not_finite_is_told_late_and_by_name() -> None:
    model, optimizer, _ = trained(3)
    backward(model)
    p = next(model.parameters())
    assert p.grad is not None
    p.grad.view(-1)[0] = math.nan
    optimizer.step()
    for q in model.parameters():
        q.grad = torch.zeros_like(q)
    for _ in range(LATE_STEPS - 1):
        optimizer.step()
    with pytest.raises(
        FloatingPointError, match=r"optimizer step 4 in '0.weight', seen now because the host"
    ):
        optimizer.step()


@pytest.mark.usefixtures("away")
def test_the_end_of_training_tells_what_was_still_on_its_way() -> None:
    model, optimizer, sparsifier = trained(25)
    backward(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.inf)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(FloatingPointError, match=r"optimizer step 26 in '0.weight', '2.weight', seen now"):
        sparsifier.finalize()
    sparsifier.finalize()  # having been told, the user may still have the model
    nmstep.verify(model, "2:4").raise_if_failed()


@pytest.mark.usefixtures("away")
def test_a_checkpoint_that_would_hold_a_nan_is_not_written_in_silence() -> None:
    model, optimizer, _ = trained(6)
    backward(model)
    model[0].weight.grad[0] = math.nan
    optimizer.step()
    with pytest.raises(FloatingPointError, match=r"optimizer step 7 in '0.weight'"):
        optimizer.state_dict()


@pytest.mark.usefixtures("away")
def test_training_goes_on_from_a_checkpoint_after_a_late_error() -> None:
    model, optimizer, sparsifier = trained(6)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for _ in range(2):  # two bad steps, of which the first is told
        backward(model)
        model[0].weight.grad[0] = math.nan
        optimizer.step()
    with pytest.raises(FloatingPointError, match="optimizer step 7"):
        steps(model, optimizer, LATE_STEPS)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    steps(model, optimizer, 24, first=6)
    assert sparsifier.step == 30
    for p, q in zip(model.parameters(), trained(30)[0].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_a_switch_that_reads_no_variance_is_not_late_whatever_is_recorded(every: int) -> None:
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    recipe = nmstep.STEP("2:4", switch=nmstep.SwitchAt(6))
    sparsifier = sparsify(model, optimizer, recipe, trace=nmstep.TraceOptions(variance_every=every))
    steps(model, optimizer, 12)
    assert sparsifier.switch_step == 6
