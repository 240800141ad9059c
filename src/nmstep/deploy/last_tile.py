"""Packed tensors in files: without the rows that fill the last tile, which a layer of few outputs has many of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nmstep.tiles import LANES, Tiling, pack_rows

__all__ = ["cut", "cut_shape", "filled"]


def cut_shape(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Returns the shape in a file of a tensor of tiles: flat where sixteen does not divide the rows.

    Args:
        shape: in memory, (tiles, …, sixteen rows).
        rows: of the weight.

    Example:
        >>> cut_shape((3, 8, 16), 48), cut_shape((1, 8, 16), 2)
        ((3, 8, 16), (16,))
    """
    return shape if rows % LANES == 0 else (math.prod(shape[1:-1]) * rows,)


def cut(tiles: Tensor, rows: int) -> Tensor:
    """Returns tiles as a file has them, which are the same memory where sixteen divides the rows."""
    left = rows % LANES
    return tiles if left == 0 else torch.cat([tiles[:-1].flatten(), tiles[-1, ..., :left].flatten()])


def filled(flat: Tensor, part: str, tiling: Tiling) -> Tensor:
    """Returns what :func:`cut` was given, with the rows that :func:`nmstep.tiles.pack_rows` fills it with.

    Args:
        flat: of the shape that :func:`cut_shape` says.
        part: ``"values"``, ``"indices"`` or ``"scales"``.
        tiling: of the weight.
    """
    left = tiling.rows % LANES
    if left == 0:
        return flat
    shapes = {"values": tiling.values_shape, "indices": tiling.indices_shape, "scales": (tiling.tiles, LANES)}
    tiles = flat.new_zeros(shapes[part])
    whole = tiles[:-1].numel()
    tiles[:-1] = flat[:whole].view_as(tiles[:-1])
    if part == "indices":  # places of a row of zeros, which is what fills
        tiles[-1] = pack_rows(torch.zeros(1, tiling.columns), tiling.pattern)[1][0]
    tiles[-1, ..., :left] = flat[whole:].view(*tiles.shape[1:-1], left)
    return tiles
