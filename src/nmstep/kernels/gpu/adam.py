"""Adam's step in Triton: parameters of a kind are gathered, and each kind is one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nmstep.kernels.gpu.launch import NAMES, Kind, Lies, Place, kind_of, step_
from nmstep.kernels.gpu.programs import NUMBERS
from nmstep.kernels.gpu.tables import Tables, to_device
from nmstep.kernels.update import Update, moving

__all__ = ["counted_numbers", "triton_step_"]


@dataclass(frozen=True)
class _Variant:
    """What the kernel of a step is compiled for."""

    device: torch.device
    kind: Kind
    second: torch.dtype
    sparse: bool
    variance: str
    refined: bool
    coupled: bool


_Batches = dict[_Variant, list[tuple[Update, Place]]]


def triton_step_(updates: Sequence[Update], sums: bool, tables: Tables | None = None) -> list[Tensor]:
    """Takes the step, and returns sums over the second moments of each launch where they are wanted.

    Args:
        updates: one for each parameter. The steps' numbers are all floats or all tensors.
        sums: whether sums are wanted.
        tables: the optimizer's, which a capturable one must have.
    """
    batches: _Batches = {}
    for u in updates:
        place = Place(_lies(u), *u.tensors())
        batches.setdefault(_variant(u, place), []).append((u, place))
    counted = tables is not None and isinstance(updates[0].step, Tensor)
    numbers = _numbers_there(batches, tables) if counted and tables else _numbers_here(batches)
    totals = []
    for variant, batch in batches.items():
        total = step_(
            variant.kind,
            [place for _, place in batch],
            numbers[variant],
            sums=sums,
            tables=tables,
            SECOND=NAMES[variant.second],
            SPARSE=variant.sparse,
            VARIANCE=variant.variance,
            REFINED=variant.refined,
            COUPLED=variant.coupled,
        )
        totals += [] if total is None else [total]
    return totals


def _numbers_here(batches: _Batches) -> dict[_Variant, Tensor]:
    """Returns the table of numbers of each launch, computed on the host."""
    shared: dict[tuple[object, ...], list[float]] = {}  # by many parameters
    found = {}
    for variant, batch in batches.items():
        for u, _ in batch:
            if u.key not in shared:
                numbers = u.numbers()
                shared[u.key] = [numbers[name] for name in NUMBERS]
        table = torch.tensor([shared[u.key] for u, _ in batch], dtype=torch.float32)
        found[variant] = to_device(table, variant.device)
    return found


def _numbers_there(batches: _Batches, tables: Tables) -> dict[_Variant, Tensor]:
    """Returns the same, computed on each device for all launches there at once, from the steps counted there."""
    found: dict[_Variant, Tensor] = {}
    for device in {variant.device for variant in batches}:
        mine = [variant for variant in batches if variant.device == device]
        rows = counted_numbers([u for variant in mine for u, _ in batches[variant]], device, tables)
        found.update(zip(mine, rows.split([len(batches[variant]) for variant in mine]), strict=True))
    return found


def counted_numbers(updates: Sequence[Update], device: torch.device, tables: Tables) -> Tensor:
    """Returns :meth:`Update.numbers` of each update as a row, computed on the device; nothing waits for it.

    In float64 there too, where a power may differ from the host's in its last bit; then one number in many millions
    is rounded to the other side.

    Args:
        updates: all of one device, their steps tensors there. A learning rate may be one too.
        device: which.
        tables: the optimizer's.

    Returns:
        float32 of shape (updates, ``len(programs.NUMBERS)``).
    """
    lrs = [u.group["lr"] for u in updates]
    moves = [isinstance(lr, Tensor) and lr.device == device for lr in lrs]
    rows = tuple(
        (*u.rates, 0.0 if there else float(lr), *(u.constants().get(name, 0.0) for name in NUMBERS))
        for u, lr, there in zip(updates, lrs, moves, strict=True)
    )
    fixed = tables.get(device, ("numbers", rows), lambda: torch.tensor(rows, dtype=torch.float64))
    beta1, beta2, decay, lr = fixed[:, :4].unbind(1)
    if any(moves):
        own = {
            id(lr): lr.detach().reshape(()).double() for lr, there in zip(lrs, moves, strict=True) if there
        }
        lr = torch.stack([own.get(id(rate), lr[i]) for i, rate in enumerate(lrs)])
    steps = torch.stack([u.step for u in updates if isinstance(u.step, Tensor)]).double()
    table = fixed[:, 4:].clone()
    for name, column in moving(lr, beta1, beta2, decay, steps, root=torch.sqrt).items():
        table[:, NUMBERS.index(name)] = column
    return table.float()


def _lies(update: Update) -> Lies:
    """Returns how a parameter lies; a dense one in fours, which are read at once."""
    if update.cut is not None:
        return Lies(*update.lies())
    numel = update.p.numel()
    return Lies(1, numel, 1, 4, 4) if numel % 4 == 0 else Lies(1, numel, 1, 1, 1)


def _variant(update: Update, place: Place) -> _Variant:
    variance = "floored" if update.group["eps_root"] != 0 else "updated"
    return _Variant(
        update.p.device,
        kind_of(place),
        update.exp_avg_sq.dtype,
        sparse=update.cut is not None,
        variance=variance if update.frozen_eps_root is None else "frozen",
        refined=update.refine != 0,
        coupled=update.coupled != 0,
    )
