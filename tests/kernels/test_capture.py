"""Steps captured in a CUDA graph, which the CPU plays: replays do what ordinary steps do, to the bit."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nmstep.kernels import Update

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a graph is captured for real there: test_cuda_graph.py", allow_module_level=True)

from capturable import RECIPES, Training, check_equal, rows
from emulated_graph import Emulator, Graph, NoWaits
from nmstep.kernels.gpu import adam as gpu_adam
from nmstep.kernels.gpu.programs import NUMBERS


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("name", RECIPES)
def test_replays_are_ordinary_steps(name: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = Training(RECIPES[name]).run(16)
    watch = NoWaits(monkeypatch)
    replayed = Training(RECIPES[name]).run(16, emulator, watch)
    assert watch.reads > 0
    check_equal(replayed, eager)
    mine, theirs = replayed.sparsifier, eager.sparsifier
    assert mine is not None
    assert theirs is not None
    assert (mine.step, mine.switch_step, mine.switch_reason) == (16, theirs.switch_step, theirs.switch_reason)
    assert mine.window_mean == theirs.window_mean
    assert rows(replayed) == rows(eager)
    assert replayed.replays > 7
    assert replayed.captures == {"dense": 1, "sr-ste": 1, "decaying": 4}.get(name, 2)


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("name", ["step", "sr-ste"])
def test_numbers_from_the_device_are_the_hosts(name: str) -> None:
    there = Training(RECIPES[name]).run(16)
    here = Training(RECIPES[name], capturable=False, fused=True).run(16)
    assert there.sparsifier is not None
    assert here.sparsifier is not None
    assert there.sparsifier.switch_step == here.sparsifier.switch_step
    sampled = [[row["z"] is None for row in rows(training)] for training in (there, here)]
    assert sampled[0] == sampled[1]
    assert there.tensors()["0.weight step"] == here.tensors()["0.weight step"] == 16
    for key, value in there.tensors().items():
        torch.testing.assert_close(value, here.tensors()[key], rtol=1e-5, atol=1e-7, msg=f"{name}: {key}")
        assert torch.equal(value == 0, here.tensors()[key] == 0)  # the same masks


def test_a_number_that_is_baked_in_would_be_seen(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    def baked(updates: list[Update], device: torch.device, _: object) -> Tensor:
        with _disable_current_modes():  # else the emulator says that the host waits, which is another test
            found = [replace(u, step=float(u.step)).numbers() for u in updates]
        return torch.tensor([[row[name] for name in NUMBERS] for row in found], device=device)

    eager = Training(RECIPES["dense"]).run(4)
    monkeypatch.setattr(gpu_adam, "counted_numbers", baked)
    assert torch.equal(eager.tensors()["0.weight"], Training(RECIPES["dense"]).run(4).tensors()["0.weight"])
    assert not torch.equal(
        eager.tensors()["0.weight"], Training(RECIPES["dense"]).run(4, emulator).tensors()["0.weight"]
    )


def test_a_look_from_the_host_would_be_seen(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2)
    for look in (lambda: float(x.sum()), lambda: bool((x > 0).all()), lambda: x.tolist()):
        with NoWaits(monkeypatch), pytest.raises(AssertionError, match="wait for the device"):
            look()
    with pytest.raises(AssertionError, match="makes the host wait"):
        emulator.capture(lambda: float(x.sum()), [])


def test_steps_without_a_sparsifier(emulator: Emulator) -> None:
    eager, replayed = Training(None).run(6), Training(None).run(6, emulator)
    assert replayed.replays == 5
    check_equal(replayed, eager)


def test_learning_rates_of_both_kinds(emulator: Emulator) -> None:
    found = []
    for graph in (None, emulator):
        training = Training(RECIPES["sr-ste"])
        training.optimizer.param_groups[1]["lr"] = 3e-2
        found.append(training.run(5, graph))
    check_equal(found[1], found[0])
    alike = Training(RECIPES["sr-ste"]).run(5)
    assert torch.equal(
        found[0].tensors()["0.weight exp_avg"].isfinite(), torch.ones(24, 16, dtype=torch.bool)
    )
    assert not torch.equal(found[0].tensors()["0.bias"], alike.tensors()["0.bias"])


def test_two_graphs_of_a_phase_work_side_by_side(emulator: Emulator) -> None:
    found = []
    for captures in (False, True):
        training = Training(RECIPES["sr-ste"])
        graphs: list[Graph] = []
        for step in range(8):
            training.next_batch()
            if step < 2 or not captures:
                training.iteration()
                graphs += [training.capture(emulator)] if captures else []
            else:
                graphs[step % 2].replay()
                assert training.sparsifier is not None
                assert not training.sparsifier.replayed()
        found.append(training)
    check_equal(found[1], found[0])
    assert rows(found[1]) == rows(found[0])


@pytest.mark.usefixtures("away")
def test_the_loss_of_a_replay_is_recorded(emulator: Emulator) -> None:
    training = Training(RECIPES["sr-ste"])
    training.run(2, emulator)
    assert training.sparsifier is not None
    graph = training.capture(emulator) if training.sparsifier.ready_to_capture else None
    assert graph is None  # the last step was none that ran as ever
    training.next_batch()
    training.iteration()
    graph = training.capture(emulator)
    losses = []
    for _ in range(2):
        training.next_batch()
        training.sparsifier.log_loss(training.loss)  # of the replay that follows
        graph.replay()
        losses.append(float(training.loss.detach()))
        training.sparsifier.replayed()
    assert [row["loss"] for row in training.sparsifier.trace.rows()][-2:] == losses
    assert losses[0] != losses[1]


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("capturable", [True, False])
def test_a_checkpoint_of_replayed_steps_goes_on(capturable: bool, emulator: Emulator) -> None:
    whole = Training(RECIPES["step"]).run(14)
    for cut in (6, 11):
        first = Training(RECIPES["step"]).run(cut, emulator)
        again = Training(RECIPES["step"], capturable=capturable, fused=True)
        again.model.load_state_dict(first.model.state_dict())
        file = io.BytesIO()
        torch.save(first.optimizer.state_dict(), file)
        file.seek(0)
        again.optimizer.load_state_dict(torch.load(file, weights_only=True))
        again.lr = again.optimizer.param_groups[0]["lr"]
        for group in again.optimizer.param_groups:
            group["lr"] = again.lr
        again.step = cut
        again.run(14 - cut, emulator if capturable else None)
        assert all(group["capturable"] == capturable for group in again.optimizer.param_groups)
        if capturable:
            check_equal(again, whole)
        for name, value in again.tensors().items():
            torch.testing.assert_close(value, whole.tensors()[name], rtol=1e-5, atol=1e-7)
