"""Launching the Triton kernels: which parameters go together, and the tables that tell a launch where they lie.

Nothing here makes the host wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmstep.kernels.gpu import programs
from nmstep.kernels.gpu.tables import Tables

__all__ = ["NAMES", "Kind", "Lies", "Place", "kind_of", "mask", "split", "step_"]

_TILE = 2048  # values of one program
_INT32 = 2**31 - 1
_TABLES = Tables()  # of launches whose caller has none of its own
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class Lies:
    """How groups lie in a tensor of ``outer`` × ``size`` × ``inner`` values without gaps: along ``size``."""

    outer: int
    size: int
    inner: int
    n: int
    m: int

    @property
    def groups(self) -> int:
        """Groups of the tensor, a short one at the end of each line among them."""
        return self.outer * -(-self.size // self.m) * self.inner


class Place:
    """Where one parameter lies: its layout, and its tensors, which all lie alike.

    Args:
        lies: how.
        tensors: the parameter, and as far as the kernel reads them its pruned part, gradient and moments.
    """

    def __init__(self, lies: Lies, *tensors: Tensor | None) -> None:
        self.lies = lies
        self.tensors = tensors

    def row(self) -> tuple[int, ...]:
        """Returns the parameter's row of the table."""
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in self.tensors]
        numbers = (self.lies.groups, self.lies.size, self.lies.inner, *addresses)
        return (*numbers, *[0] * (len(programs.COLUMNS) - len(numbers)))


@dataclass(frozen=True)
class Kind:
    """What any kernel is compiled for; parameters of one kind share a launch."""

    n: int
    m: int
    flat: bool
    even: int
    wide: bool
    dtype: torch.dtype
    aligned: bool

    @property
    def width(self) -> int:
        """Places of a group in a tile, a power of two."""
        return 1 << (self.m - 1).bit_length()

    @property
    def groups(self) -> int:
        """Groups of one program."""
        return max(1, _TILE // self.width)

    def constants(self) -> dict[str, Any]:
        """Returns the kernels' arguments of that name."""
        return {
            "N": self.n,
            "M": self.m,
            "WIDTH": self.width,
            "GROUPS": self.groups,
            "FLAT": self.flat,
            "EVEN": self.even,
            "WIDE": self.wide,
            "DTYPE": NAMES[self.dtype],
            "ALIGNED": self.aligned,
        }


def kind_of(place: Place) -> Kind:
    """Returns what a kernel for one parameter must be compiled for."""
    lies, tensors = place.lies, [tensor for tensor in place.tensors if tensor is not None]
    return Kind(
        n=lies.n,
        m=lies.m,
        flat=lies.inner == 1 and lies.size % lies.m == 0,
        even=math.gcd(lies.inner, 16),
        wide=tensors[0].numel() > _INT32 - _TILE * lies.m,  # no offset of the last tile may overflow either
        dtype=tensors[0].dtype,
        aligned=all(tensor.data_ptr() % 16 == 0 for tensor in tensors),
    )


def mask(weight: Tensor, to: Tensor, lies: Lies) -> None:
    """Writes the mask of ``weight`` to the bool tensor ``to``, which lies alike."""
    place = Place(lies, weight)
    _launch(programs.mask, kind_of(place), [place], to.view(torch.uint8))


def split(weight: Tensor, pruned: Tensor, lies: Lies) -> None:
    """Splits ``weight`` into itself and ``pruned``."""
    place = Place(lies, weight, pruned)
    _launch(programs.split, kind_of(place), [place])


def step_(
    kind: Kind,
    places: Sequence[Place],
    numbers: Tensor,
    *,
    sums: bool,
    tables: Tables | None,
    **constants: Any,
) -> Tensor | None:
    """Takes a step on parameters of one kind, in one launch.

    Args:
        kind: of all of them.
        places: each with its parameter, pruned part or None, gradient and both moments.
        numbers: float32 of shape (parameters, ``len(programs.NUMBERS)``), on the device.
        sums: return sums over the second moments.
        tables: the optimizer's, or None.
        constants: SECOND, SPARSE, VARIANCE, REFINED, COUPLED of the kernel.

    Returns:
        With ``sums``, ``[Σ|v_t − v_{t−1}|, Σ v_t, Σ v_t²]`` in float64, on the device; else None.
    """
    tables = tables or _TABLES
    blocks = _blocks_of(kind, places, tables)
    partial = torch.zeros(len(blocks) if sums else 0, 3, device=numbers.device)
    more = {**constants, "SUMS": sums}
    _launch(programs.adam_step, kind, places, numbers, partial, tables=tables, blocks=blocks, **more)
    return partial.sum(0, dtype=torch.float64) if sums else None


def _launch(
    program: Any,
    kind: Kind,
    places: Sequence[Place],
    *arguments: Tensor,
    tables: Tables = _TABLES,
    blocks: Tensor | None = None,
    **constants: Any,
) -> None:
    blocks = _blocks_of(kind, places, tables) if blocks is None else blocks
    if len(blocks):
        device = blocks.device
        rows = tuple(place.row() for place in places)
        table = tables.get(device, ("rows", rows), lambda: torch.tensor(rows, dtype=torch.int64))
        # Triton launches on the current device, whatever its arguments lie on.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            program[(len(blocks),)](table, blocks, *arguments, **kind.constants(), **constants)


def _blocks_of(kind: Kind, places: Sequence[Place], tables: Tables) -> Tensor:
    device = places[0].tensors[0].device  # type: ignore[union-attr]
    groups = tuple(place.lies.groups for place in places)
    return tables.get(device, ("blocks", groups, kind.groups), lambda: _blocks(groups, kind.groups))


def _blocks(groups: tuple[int, ...], in_block: int) -> Tensor:
    """Returns (parameter, block of its groups) for each program of a launch."""
    counts = torch.tensor([-(-count // in_block) for count in groups])
    parameter = torch.repeat_interleave(torch.arange(len(groups)), counts)
    first = torch.cumsum(counts, 0) - counts
    block = torch.arange(len(parameter)) - first[parameter]
    return torch.stack([parameter, block], 1).to(torch.int32)
