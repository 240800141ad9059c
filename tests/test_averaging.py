"""Averages of the weights before the mask, the N:M model made of them, and what a plain average is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import nmstep
from nmstep import AdamW, Recipe, SwitchAt, sparsify, verify
from tiny import backward, net, steps

RECIPES: dict[str, Callable[[], Recipe]] = {
    "dense": lambda: nmstep.Dense(),
    "asp": lambda: nmstep.ASP("2:4", start=3),
    "ste": lambda: nmstep.STE("2:4"),
    "sr-ste": lambda: nmstep.SRSTE("2:4"),
    "decaying": lambda: nmstep.DecayingMask("1:4", dense_steps=2, interval=3),
    "step": lambda: nmstep.STEP("2:4", switch=SwitchAt(4)),
}


def make(recipe: str, cls: Any = AdamW, **kwargs: Any) -> tuple[nn.Module, Any, nmstep.Sparsifier]:
    model = net()
    optimizer = cls(model.parameters(), **{"lr": 0.02, **kwargs})
    return model, optimizer, sparsify(model, optimizer, RECIPES[recipe]())


def state(model: nn.Module, optimizer: Any) -> list[tuple[Tensor, Tensor]]:
    """Returns copies of each parameter and of its latent weight, read from where both lie."""
    found = []
    for p in model.parameters():
        pruned = optimizer.state.get(p, {}).get("pruned")
        w = p.detach().clone()
        found.append((w, w if pruned is None else w + pruned))
    return found


def masked_by_hand(w: Tensor, n: int, m: int) -> Tensor:
    """Keeps the n largest of each m along the rows, the lower index of equals."""
    out = torch.zeros_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], m):
            group = w[row, start : start + m].abs().tolist()
            for i in sorted(range(m), key=lambda i: (-group[i], i))[:n]:
                out[row, start + i] = w[row, start + i]
    return out


@pytest.mark.parametrize(
    ("recipe", "cls"),
    [(r, AdamW) for r in RECIPES] + [(r, torch.optim.SGD) for r in RECIPES if r != "step"],
)
def test_latent_shows_the_weights_before_the_mask_and_gives_back_all(recipe: str, cls: Any) -> None:
    model, optimizer, sparsifier = make(recipe, cls)
    plain, other, _ = make(recipe, cls)
    for i in range(8):
        steps(model, optimizer, 1, first=i)
        steps(plain, other, 1, first=i)
        before = state(model, optimizer)
        with sparsifier.latent():
            for p, (_, w) in zip(model.parameters(), before, strict=True):
                assert torch.equal(p, w)
        for p, (own, _) in zip(model.parameters(), before, strict=True):
            assert torch.equal(p, own)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)  # that somebody looked changed nothing
    assert sparsifier.step == 8


@pytest.mark.parametrize("recipe", ["ste", "sr-ste", "step"])
def test_an_average_is_of_latent_weights_and_then_masked(recipe: str) -> None:
    model, optimizer, sparsifier = make(recipe)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    expected: list[Tensor] = []
    for i in range(10):
        steps(model, optimizer, 1, first=i)
        with sparsifier.latent():
            ema.update_parameters(model)
        latent = [w for _, w in state(model, optimizer)]
        pairs = zip(expected, latent, strict=True) if i else []
        expected = [0.8 * a + 0.2 * w for a, w in pairs] or latent
    before = copy.deepcopy(ema.state_dict())
    found = sparsifier.averaged(ema)
    for p, w in zip(found.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), masked_by_hand(w, 2, 4))
    assert verify(found, "2:4").ok
    assert type(found) is type(model)
    assert all(torch.equal(before[key], value) for key, value in ema.state_dict().items())


def test_a_plain_average_is_nm_only_of_a_mask_that_stays() -> None:
    for recipe, is_nm in (("asp", True), ("sr-ste", False), ("step", False)):
        model, optimizer, sparsifier = make(recipe, lr=0.1)
        steps(model, optimizer, 4)  # to the masks
        ema = AveragedModel(model)
        for i in range(4, 12):
            steps(model, optimizer, 1, first=i)
            ema.update_parameters(model)
        assert verify(ema.module, "2:4").ok == is_nm
        assert verify(sparsifier.averaged(ema), "2:4").ok


def test_the_two_averages_differ() -> None:
    model, optimizer, sparsifier = make("sr-ste", lr=0.1)
    plain, latent = AveragedModel(model), AveragedModel(model)
    for i in range(8):
        steps(model, optimizer, 1, first=i)
        plain.update_parameters(model)
        with sparsifier.latent():
            latent.update_parameters(model)
    pairs = zip(
        sparsifier.averaged(plain).parameters(), sparsifier.averaged(latent).parameters(), strict=True
    )
    assert not all(torch.equal(p, q) for p, q in pairs)


def test_the_final_pattern_is_applied_however_far_the_schedule_is() -> None:
    model, optimizer, sparsifier = make("decaying")
    ema = AveragedModel(model)
    for i in range(4):
        steps(model, optimizer, 1, first=i)
        ema.update_parameters(model)
        assert verify(sparsifier.averaged(ema), "1:4").ok
    assert not verify(model, "1:4").ok


def test_averaging_in_a_hook_of_the_optimizer() -> None:
    model, optimizer, sparsifier = make("sr-ste")
    in_hook, in_loop = AveragedModel(model), AveragedModel(model)

    def update(*_: Any) -> None:
        with sparsifier.latent():
            in_hook.update_parameters(model)

    optimizer.register_step_post_hook(update)
    for i in range(5):
        steps(model, optimizer, 1, first=i)
        with sparsifier.latent():
            in_loop.update_parameters(model)
    assert int(in_hook.n_averaged) == 5
    for p, q in zip(in_hook.parameters(), in_loop.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_average_is_resumed_to_the_bit() -> None:
    def start() -> tuple[Any, ...]:
        parts = make("step")
        return *parts, AveragedModel(parts[0], multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def go(parts: tuple[Any, ...], first: int, last: int) -> None:
        model, optimizer, sparsifier, ema = parts
        for i in range(first, last):
            steps(model, optimizer, 1, first=i)
            with sparsifier.latent():
                ema.update_parameters(model)

    whole, cut, again = start(), start(), start()
    go(whole, 0, 9)
    go(cut, 0, 6)
    for index in (0, 1, 3):
        again[index].load_state_dict(copy.deepcopy(cut[index].state_dict()))
    go(again, 6, 9)
    for p, q in zip(again[3].parameters(), whole[3].parameters(), strict=True):
        assert torch.equal(p, q)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def test_swa_with_its_schedule_and_batch_norm() -> None:
    model = Normed()
    optimizer = AdamW(model.parameters(), lr=0.05)
    sparsifier = sparsify(model, optimizer, nmstep.STEP("2:4", switch=SwitchAt(3)))
    swa, schedule = AveragedModel(model), SWALR(optimizer, swa_lr=0.01, anneal_epochs=4)
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(8, 16, generator=generator) for _ in range(12)]
    for i, x in enumerate(batches):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        schedule.step()
        if i >= 6:
            with sparsifier.latent():
                swa.update_parameters(model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    found = sparsifier.averaged(swa)
    update_bn(batches, found)
    assert verify(found, "2:4").ok
    # Of equal batches, the mean over all of them is that of what the masked layer gives.
    out = torch.cat(batches) @ found.first.weight.detach().T + found.first.bias.detach()
    torch.testing.assert_close(found.norm.running_mean, out.mean(0))
    dense = copy.deepcopy(swa.module)
    update_bn(batches, dense)
    assert not torch.allclose(dense.norm.running_mean, out.mean(0), atol=1e-3)


def test_averaged_takes_wrapped_models_and_refuses_others() -> None:
    model, _, sparsifier = make("sr-ste")
    compiled = torch.compile(model, backend="eager")
    for wrapped in (model, AveragedModel(model), compiled, AveragedModel(compiled)):
        assert verify(sparsifier.averaged(wrapped), "2:4").ok
    with pytest.raises(ValueError, match="which this Linear does not have"):
        sparsifier.averaged(nn.Linear(4, 4))
    sparsifier.finalize()
    assert verify(sparsifier.averaged(AveragedModel(model)), "2:4").ok


@pytest.mark.parametrize(("recipe", "view"), [("asp", "latent"), ("asp", "masked"), ("sr-ste", "latent")])
def test_what_is_refused_inside_a_view(recipe: str, view: str) -> None:
    model, optimizer, sparsifier = make(recipe)
    backward(model)
    before = [p.detach().clone() for p in model.parameters()]
    says = rf"inside sparsifier\.{view}\(\): the model does not hold its own weights"
    with getattr(sparsifier, view)():
        for what in (optimizer.step, optimizer.state_dict, sparsifier.finalize):
            with pytest.raises(RuntimeError, match=says):
                what()
        for inner in (sparsifier.latent, sparsifier.masked):
            with pytest.raises(RuntimeError, match=says), inner():
                pass
    with pytest.raises(KeyError), getattr(sparsifier, view)():
        raise KeyError
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    optimizer.step()
    with sparsifier.latent():
        pass


def test_latent_finds_foreign_writes_as_a_step_does() -> None:
    model, optimizer, sparsifier = make("sr-ste")
    steps(model, optimizer, 1)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    with pytest.raises(ValueError, match="no longer zero where its mask cut"), sparsifier.latent():
        pass
    optimizer.state.clear()
    with pytest.raises(RuntimeError, match="no longer holds what its mask cut away"), sparsifier.latent():
        pass


def test_latent_ends_an_interrupted_step_first() -> None:
    model, optimizer, sparsifier = make("sr-ste", fused=False)
    steps(model, optimizer, 1)
    expected = state(model, optimizer)
    backward(model)
    handle = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    handle.remove()
    with sparsifier.latent():
        for p, (_, w) in zip(model.parameters(), expected, strict=True):
            assert torch.equal(p, w)
    for p, (own, _) in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p, own)
