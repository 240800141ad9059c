"""Where a dense product is faster than a packed one, as measured; the figures are in docs/performance.md."""

from __future__ import annotations

from functools import cache

import torch

from nmstep.kernels.native import kernels, status
from nmstep.patterns import NMPattern
from nmstep.tiles import LANES, Tiling

__all__ = ["dense_from", "is_better_dense"]

_SMALL = 192 * 192
# Share of kept weights above which a dense product is as fast or faster at some batch.
_MOST_KEPT = {"avx512": 0.8, "avx2": 0.8, "plain": 0.2}
# The same for layers in bfloat16, where torch multiplies that by instructions of the processor; and from so many
# rows on, unless the kernels do too. For matrix units reckoned from others' figures, not measured.
_MOST_KEPT_BF16 = 0.5
_MOST_KEPT_BY_ROWS, _MOST_KEPT_AMX = 0.4, 0.2
_ROWS_BF16 = 64


def _is_small(tiling: Tiling) -> bool:
    """Whether a layer has so few weights that what its call costs besides decides, whatever the kernel."""
    return tiling.rows * tiling.columns <= _SMALL


def is_better_dense(tiling: Tiling, dtype: torch.dtype) -> bool:
    """Whether a layer of this dtype is to hold its weight dense, since products with a packed one are slower."""
    here = status()
    if _is_small(tiling) or here.active == here.on_gpu == "torch":
        return True
    # With the rows that fill the last tile.
    kept = tiling.pattern.density * LANES * tiling.tiles / tiling.rows
    most = _MOST_KEPT.get(here.active, _MOST_KEPT["avx512"])
    if dtype is torch.bfloat16 and _multiplies_bf16():
        most = min(most, _MOST_KEPT_BF16)
    return kept > most


def dense_from(tiling: Tiling, dtype: torch.dtype) -> int | None:
    """Returns from how many rows of an input of this dtype a packed weight is multiplied as a dense one, or None.

    It is made dense a part at a time, in memory that stays in the cache.
    """
    if dtype is not torch.bfloat16 or not _multiplies_bf16():
        return None
    if torch.cpu._is_amx_tile_supported():
        most = _MOST_KEPT_AMX
    else:
        most = 1.0 if _goes_by_pairs(tiling.pattern) else _MOST_KEPT_BY_ROWS
    return _ROWS_BF16 if tiling.pattern.density > most else None


@cache
def _multiplies_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _goes_by_pairs(pattern: NMPattern) -> bool:
    module = kernels()
    return module is not None and module.goes_by_pairs(pattern.n, pattern.m)
