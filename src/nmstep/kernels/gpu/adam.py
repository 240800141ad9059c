"""Adam's step in Triton: parameters of a kind are gathered, and each kind is one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nmstep.kernels.gpu.launch import NAMES, Kind, Lies, Place, kind_of, step_, to_device
from nmstep.kernels.gpu.programs import NUMBERS
from nmstep.kernels.update import Update

__all__ = ["triton_step_"]


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


def triton_step_(updates: Sequence[Update], sums: bool) -> list[Tensor]:
    """Takes the step, and returns sums over the second moments of each launch where they are wanted."""
    numbers: dict[tuple[object, ...], list[float]] = {}  # shared by many parameters
    batches: dict[_Variant, list[tuple[Update, Place]]] = {}
    for u in updates:
        if u.key not in numbers:
            found = u.numbers()
            numbers[u.key] = [found[name] for name in NUMBERS]
        place = Place(_lies(u), *u.tensors())
        batches.setdefault(_variant(u, place), []).append((u, place))
    totals = []
    for variant, batch in batches.items():
        table = torch.tensor([numbers[u.key] for u, _ in batch], dtype=torch.float32)
        total = step_(
            variant.kind,
            [place for _, place in batch],
            to_device(table, variant.device),
            sums=sums,
            SECOND=NAMES[variant.second],
            SPARSE=variant.sparse,
            VARIANCE=variant.variance,
            REFINED=variant.refined,
            COUPLED=variant.coupled,
        )
        totals += [] if total is None else [total]
    return totals


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
