"""Where a dense product is faster than a packed one, as measured; the figures are in docs/performance.md."""

from __future__ import annotations

from functools import cache

import torch

from nmstep.kernels.native import status
from nmstep.tiles import LANES, Tiling

__all__ = ["dense_from", "is_better_dense", "is_small"]

_SMALL = 192 * 192
# Share of kept weights above which a dense product is as fast or faster at some batch.
_MOST_KEPT = {"avx512": 0.8, "avx2": 0.8, "plain": 0.2}
# The same for inputs in bfloat16 from so many rows on, where torch multiplies by instructions of the processor; for
# matrix units reckoned from others' figures of dense bfloat16, not measured.
_MOST_KEPT_BF16, _MOST_KEPT_AMX = 0.4, 0.2
_ROWS_BF16 = 64


def is_small(tiling: Tiling) -> bool:
    """Whether a layer has so few weights that what its call costs besides decides, whatever the kernel."""
    return tiling.rows * tiling.columns <= _SMALL


def is_better_dense(tiling: Tiling) -> bool:
    """Whether a layer is to hold its weight dense, since some product with the packed one would be slower."""
    here = status()
    if is_small(tiling) or here.active == here.on_gpu == "torch":
        return True
    kept = (
        tiling.pattern.density * LANES * tiling.tiles / tiling.rows
    )  # with the rows that fill the last tile
    return kept > _MOST_KEPT.get(here.active, _MOST_KEPT["avx512"])


def dense_from(tiling: Tiling, dtype: torch.dtype) -> int | None:
    """Returns from how many rows of an input of this dtype a packed weight is multiplied as a dense one, or None.

    It is made dense a part at a time, in memory that stays in the cache.
    """
    if dtype is not torch.bfloat16:
        return None
    return _ROWS_BF16 if tiling.pattern.density > _most_kept_in_bf16() else None


@cache
def _most_kept_in_bf16() -> float:
    if torch.cpu._is_amx_tile_supported():
        return _MOST_KEPT_AMX
    return _MOST_KEPT_BF16 if torch.cpu._is_avx512_bf16_supported() else 1.0
