"""FSDP2 keeps the root's parameters gathered after a forward pass without a backward one: are those ever stale?"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moved
import ranked
import torch
from torch import Tensor, nn

import nmstep
from nmstep import STEP, AdamW, Sparsifier, SwitchAt, sparsify


def everything(folder: Path) -> dict[str, Any]:
    """Returns by how much a model that is cut is off one that is whole, in each case."""
    return {
        "masked": _pair(_masked),
        "latent": _pair(_latent),
        "finalized": _pair(_finalized),
        "sparsified": _pair(_sparsified, first=True),
        "resumed": _resumed(folder),
    }


def _pair(
    work: Callable[[list[nn.Module], list[Sparsifier]], tuple[float, ...]], *, first: bool = False
) -> tuple[float, ...]:
    models: list[nn.Module] = [ranked.fsdp(ranked.net()), ranked.net()]
    optimizers = [AdamW(model.parameters(), lr=0.01) for model in models]
    if first:
        _apart(models)  # an evaluation before sparsify, which masks at once
    recipes = [nmstep.SRSTE("2:4")] * 2 if first else [STEP("2:4", 50, switch=SwitchAt(2))] * 2
    groups: list[Any] = ["world", None]
    sparsifiers = [
        sparsify(*given, process_group=group)
        for *given, group in zip(models, optimizers, recipes, groups, strict=True)
    ]
    found = work(models, sparsifiers)
    return (*found, *_step(models, optimizers), *_apart(models))


def _masked(models: list[nn.Module], sparsifiers: list[Sparsifier]) -> tuple[float, ...]:
    before = _apart(models)
    with sparsifiers[0].masked(), sparsifiers[1].masked():
        inside = _apart(models)
    return (*before, *inside)


def _latent(models: list[nn.Module], sparsifiers: list[Sparsifier]) -> tuple[float, ...]:
    for _ in range(2):
        _step(models, [sparsifier._optimizer for sparsifier in sparsifiers])
    before = _apart(models)
    with sparsifiers[0].latent(), sparsifiers[1].latent():
        inside = _apart(models)
    return (*before, *inside)


def _finalized(models: list[nn.Module], sparsifiers: list[Sparsifier]) -> tuple[float, ...]:
    before = _apart(models)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sparsifier in sparsifiers:
            sparsifier.finalize()
    assert nmstep.verify(models[0], "2:4").ok
    return (*before, *_apart(models))


def _sparsified(models: list[nn.Module], sparsifiers: list[Sparsifier]) -> tuple[float, ...]:
    assert [sparsifier.phase for sparsifier in sparsifiers] == ["sparse", "sparse"]
    return _apart(models)


def _resumed(folder: Path) -> tuple[float, ...]:
    """A model is evaluated before a checkpoint of another is loaded into it."""
    made = [
        (model, AdamW(model.parameters())) for model in (ranked.fsdp(ranked.net()), ranked.fsdp(ranked.net()))
    ]
    for model, optimizer in made:
        sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    models = [model for model, _ in made]
    _step(models[:1] * 2, [made[0][1]] * 2)  # the first alone
    moved.save(folder, "nested", *made[0], later=False)
    _apart(models)
    moved.load(folder, "nested", *made[1])
    return _apart(models)


def _step(models: list[nn.Module], optimizers: list[Any]) -> tuple[float, ...]:
    x, y = ranked.batch(1)
    losses: list[Tensor] = []
    for model, optimizer in zip(models, optimizers, strict=True):
        losses.append((model(x) - y).square().mean())
        losses[-1].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return (abs(float(losses[0].detach() - losses[1].detach())),)


def _apart(models: list[nn.Module]) -> tuple[float, ...]:
    """Evaluates both models, and returns how far what they say is apart."""
    with torch.no_grad():
        first, second = (model(ranked.batch(0)[0]) for model in models)
    return (float((first - second).abs().max()),)
