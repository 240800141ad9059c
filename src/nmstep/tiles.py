"""Packed N:M weights: the values that are kept and their places in the groups, in tiles of sixteen rows.

The rows of a tile are the lanes of a vector: sixteen outputs are summed at once, each from its own inputs.
Places are fields of 32-bit words, as many as fit, so that one load brings the places of several values for all
sixteen rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmstep.patterns import NMPattern

__all__ = [
    "LANES",
    "MOST_M",
    "Tiling",
    "as_rows",
    "from_rows",
    "has_rows",
    "misplaced",
    "pack_rows",
    "unpack_rows",
]

#: Rows of a tile.
LANES = 16
#: The largest group that is packed.
MOST_M = 64
_WORD = 32
_AT_A_TIME = 1 << 18  # values: bounds what packing, unpacking and checking need beside their result


@dataclass(frozen=True)
class Tiling:
    """How a weight of ``rows`` outputs × ``columns`` inputs is stored.

    Args:
        rows: outputs.
        columns: inputs; where M does not divide them, the last group is padded.
        pattern: N kept of every M inputs of a row.

    Example:
        >>> tiling = Tiling(768, 3072, NMPattern(2, 4))
        >>> tiling.values_shape, tiling.indices_shape
        ((48, 1536, 16), (48, 96, 16))
    """

    rows: int
    columns: int
    pattern: NMPattern

    @classmethod
    def of(cls, shape: Sequence[int], dim: int, pattern: NMPattern) -> Tiling:
        """Returns how the rows of a weight that :func:`has_rows` are stored."""
        rows = shape[1 if dim == 0 else 0]
        return cls(rows, math.prod(shape) // rows if rows else 0, pattern)

    @property
    def tiles(self) -> int:
        """Tiles of sixteen rows, the last one padded with rows of zeros."""
        return -(-self.rows // LANES)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.pattern.m)

    @property
    def kept(self) -> int:
        """Values stored for a row."""
        return self.groups * self.pattern.n

    @property
    def bits(self) -> int:
        """Bits of a place."""
        return max(1, (self.pattern.m - 1).bit_length())

    @property
    def fields(self) -> int:
        """Places in a word; up to two bits of it are left over."""
        return _WORD // self.bits

    @property
    def values_shape(self) -> tuple[int, int, int]:
        """Tiles × values of a row × rows of a tile."""
        return (self.tiles, self.kept, LANES)

    @property
    def indices_shape(self) -> tuple[int, int, int]:
        """Tiles × words of a row × rows of a tile."""
        return (self.tiles, -(-self.kept // self.fields), LANES)


def has_rows(shape: Sequence[int], dim: int, pattern: NMPattern) -> bool:
    """Whether a weight whose groups run along ``dim`` can be packed: with rows, and each group in one piece.

    So have (out, in), (in, out) and the (out, in, …) of a convolution, if only the last group of a row is short.
    """
    if not 1 <= pattern.n < pattern.m <= MOST_M or not math.prod(shape):
        return False
    if len(shape) == 2:
        return dim in (0, 1)
    return len(shape) > 2 and dim == 1 and (shape[1] % pattern.m == 0 or math.prod(shape[2:]) == 1)


def as_rows(weight: Tensor, dim: int) -> Tensor:
    """Returns a weight as (outputs, inputs); those of a convolution are ordered by their place, then by channel.

    Args:
        weight: one that :func:`has_rows`.
        dim: the dimension that its groups run along.

    Example:
        >>> as_rows(torch.zeros(8, 4), 0).shape, as_rows(torch.zeros(8, 4, 3, 3), 1).shape
        (torch.Size([4, 8]), torch.Size([8, 36]))
    """
    return weight.movedim(dim, -1).flatten(1)


def from_rows(rows: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Returns the weight of this shape that :func:`as_rows` turned into rows."""
    shape = list(shape)
    moved = [*shape[:dim], *shape[dim + 1 :], shape[dim]]
    turned = rows.view(moved).movedim(-1, dim)
    like = torch.empty(shape, device="meta")
    # Not contiguous(): that leaves strides of sizes of one as they are, and torch reads an order from them.
    if turned.stride() == like.stride():
        return turned
    return torch.empty(shape, dtype=rows.dtype, device=rows.device).copy_(turned)


@torch.no_grad()
def pack_rows(
    weight: Tensor, pattern: NMPattern, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the values that a weight keeps, and their places.

    Places in a group ascend. A group with fewer than N values that are not zero keeps its first zeros too.

    Args:
        weight: shape (rows, columns), any strides.
        pattern: N kept of every M inputs of a row.
        dtype: of the values; the weight's own by default.

    Returns:
        Values and int32 words, of the shapes that :class:`Tiling` names.

    Raises:
        ValueError: a group holds more than N values that are not zero.

    Example:
        >>> values, indices = pack_rows(torch.tensor([[0.0, 3.0, 0.0, 4.0]]), NMPattern(2, 4))
        >>> values[0, :, 0], indices[0, :, 0]
        (tensor([3., 4.]), tensor([13], dtype=torch.int32))
    """
    outputs, inputs = weight.shape
    tiling = Tiling(outputs, inputs, pattern)
    values = torch.empty(tiling.values_shape, dtype=dtype or weight.dtype, device=weight.device)
    indices = torch.empty(tiling.indices_shape, dtype=torch.int32, device=weight.device)
    for first, last in _parts(tiling):
        rows = weight[first * LANES : last * LANES]
        rows = nn.functional.pad(rows, (0, -rows.shape[1] % pattern.m, 0, (last - first) * LANES - len(rows)))
        groups = rows.unflatten(1, (tiling.groups, pattern.m))
        if bool((groups.count_nonzero(2) > pattern.n).any()):
            raise ValueError(f"a group of the weight holds more than {pattern.n} values that are not zero")
        # Stable: what is not zero first, in its order, then zeros in theirs.
        places = (groups == 0).to(torch.uint8).argsort(dim=2, stable=True)[..., : pattern.n].sort(2).values
        values[first:last] = _in_tiles(groups.gather(2, places)).to(values.dtype)
        indices[first:last] = _words(_in_tiles(places), tiling)
    return values, indices


@torch.no_grad()
def unpack_rows(values: Tensor, indices: Tensor, tiling: Tiling) -> Tensor:
    """Returns the weight that :func:`pack_rows` took, shape (rows, columns), with zeros where nothing was kept.

    Args:
        values: as :func:`pack_rows` returned them.
        indices: likewise.
        tiling: of the weight.
    """
    weight = torch.empty(tiling.rows, tiling.columns, dtype=values.dtype, device=values.device)
    n, m = tiling.pattern.n, tiling.pattern.m
    for first, last in _parts(tiling):
        places = _places(indices[first:last], tiling)
        shape = (len(places) * LANES, tiling.groups, n)
        groups = values.new_zeros(*shape[:2], m)
        groups.scatter_(2, _in_rows(places).view(shape), _in_rows(values[first:last]).view(shape))
        rows = groups.flatten(1)[: tiling.rows - first * LANES, : tiling.columns]
        weight[first * LANES : first * LANES + len(rows)] = rows
    return weight


def misplaced(indices: Tensor, tiling: Tiling) -> tuple[int, int] | None:
    """Returns row and group of the first places that :func:`pack_rows` would not have written, or None.

    Those of a group ascend, and lie in it.

    Args:
        indices: int32 words of the shape that ``tiling`` names.
        tiling: of the weight.
    """
    n, m = tiling.pattern.n, tiling.pattern.m
    for first, last in _parts(tiling):
        places = _in_rows(_places(indices[first:last], tiling)).view(-1, tiling.groups, n)
        bad = (places[..., -1] >= m) | (places.diff(dim=2) <= 0).any(2)
        if bool(bad.any()):
            row, group = (int(i) for i in bad.nonzero()[0])
            return first * LANES + row, group
    return None


def _parts(tiling: Tiling) -> Iterator[tuple[int, int]]:
    tiles = max(1, _AT_A_TIME // (tiling.columns * LANES))
    for first in range(0, tiling.tiles, tiles):
        yield first, min(first + tiles, tiling.tiles)


def _in_tiles(rows: Tensor) -> Tensor:
    """Returns (rows, groups, n) as (tiles, groups · n, sixteen rows)."""
    return rows.reshape(len(rows) // LANES, LANES, rows[0].numel()).transpose(1, 2)


def _in_rows(tiles: Tensor) -> Tensor:
    """Returns (tiles, values, sixteen rows) as (rows, values)."""
    return tiles.transpose(1, 2).flatten(0, 1)


def _words(places: Tensor, tiling: Tiling) -> Tensor:
    """Returns (tiles, values, rows) places as fields of words."""
    padded = nn.functional.pad(places, (0, 0, 0, -places.shape[1] % tiling.fields))
    fields = padded.unflatten(1, (-1, tiling.fields))
    shifts = torch.arange(tiling.fields, device=places.device) * tiling.bits
    return torch.bitwise_left_shift(fields, shifts[:, None]).sum(2).to(torch.int32)


def _places(words: Tensor, tiling: Tiling) -> Tensor:
    """Returns the int64 places of words, (tiles, values, rows)."""
    shifts = torch.arange(tiling.fields, device=words.device) * tiling.bits
    fields: Tensor = (words.unsqueeze(2).long() >> shifts[:, None]) & ((1 << tiling.bits) - 1)
    return fields.flatten(1, 2)[:, : tiling.kept]
