"""Products with packed weights on a GPU: which of the programs takes a product, and in which pieces.

Bytes and instructions decide. Up to :data:`MOST_ROWS` rows of the input, the packed weight is read as it lies:

- *gather*, up to four rows, or M ÷ N if that is more: each kept weight fetches its input of each row, from the
  cache. The cost grows with the rows, and falls with the density.
- *expand*, up to more rows: pieces of the weight are made dense on the chip for the matrix units. The cost is that
  of all weights, kept or not, whatever the rows.

Beyond, the dense weight is written to memory once, and torch multiplies.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmstep.kernels.gpu import packed_programs as programs
from nmstep.kernels.gpu.launch import NAMES
from nmstep.kernels.native import ordinary
from nmstep.tiles import Tiling

__all__ = ["MOST_ROWS", "is_taken", "product", "scaled_product", "unpacked"]

#: Rows of the input that are multiplied with the weight as it lies. Reckoned, not measured: a dense copy moves the
#: packed bytes once and the dense ones twice, 2.6 times as many as a dense product at 2:4 in 16 bits, while four
#: blocks of 16 rows share one piece that is made dense.
MOST_ROWS = 64
_ALWAYS_GATHERED = 4  # rows, by the instructions that either takes for a weight
_GATHERED = 8  # the most rows of the input in a program that gathers
_EXPANDED = 64  # rows of the weight in a program that makes pieces dense
_SUMS = 1024  # of a program that adds up slices


@dataclass(frozen=True)
class _Grid:
    """How a product is cut: blocks of the weight's rows, slices of what is kept, blocks of the input's rows."""

    blocks: int
    slices: int
    batches: int
    steps: int

    @classmethod
    def of(cls, blocks: int, steps: int, batches: int, programs: int) -> _Grid:
        """Returns the grid of about so many programs, with slices of equal size, none of them empty."""
        wanted = max(1, programs // (blocks * batches))
        in_slice = -(-steps // min(wanted, steps))
        return cls(blocks, -(-steps // in_slice), batches, in_slice)


def is_taken(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> bool:
    """Whether the programs take these tensors: ordinary ones on one device, without gaps.

    They are of fp32, bf16 or fp16; values may be int8 too.
    """
    weight = [values, indices] if bias is None else [values, indices, bias]
    return (
        x.dtype in NAMES
        and (values.dtype in NAMES or values.dtype is torch.int8)
        and (bias is None or bias.dtype in NAMES)
        and all(ordinary(t) and t.is_contiguous() and t.device == x.device for t in weight)
    )


def product(tiling: Tiling, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``x @ weightᵀ + bias``, the same bits each time on one device.

    Args:
        tiling: of the weight.
        x: shape (…, columns), of a dtype that :func:`is_taken`.
        values: of the shape that ``tiling`` names.
        indices: likewise.
        bias: shape (rows,), or None.
    """
    batch = x.numel() // tiling.columns
    if batch > MOST_ROWS:
        return F.linear(
            x, unpacked(tiling, values, indices, x.dtype), None if bias is None else bias.to(x.dtype)
        )
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], tiling.rows)
    if batch:
        pattern = tiling.pattern
        launch = _gather if batch <= max(_ALWAYS_GATHERED, pattern.m // pattern.n) else _expand
        with _current(x.device):
            launch(tiling, batch, x, values, indices, bias, y)
    return y


def scaled_product(
    tiling: Tiling, x: Tensor, values: Tensor, indices: Tensor, scales: Tensor, bias: Tensor | None
) -> Tensor:
    """Returns the product with int8 values and their scales, summed in fp32; as :func:`product` otherwise."""
    y = product(tiling, x.float(), values, indices, None).mul_(scales.flatten()[: tiling.rows])
    return (y if bias is None else y.add_(bias)).to(x.dtype)


def unpacked(tiling: Tiling, values: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the dense weight, (rows, columns), in a dtype that :func:`is_taken`."""
    weight = torch.empty(tiling.rows, tiling.columns, dtype=dtype, device=values.device)
    pieces = _pieces(tiling, 64)
    grid = (-(-tiling.rows // _EXPANDED), -(-tiling.groups // pieces["G"]))
    sizes = (tiling.rows, tiling.columns, tiling.kept, tiling.indices_shape[1])
    with _current(values.device):
        programs.unpack[grid](
            values, indices, _bits(weight), *sizes, **_pattern(tiling), **pieces, BF16=dtype == torch.bfloat16
        )
    return weight


def _gather(tiling: Tiling, batch: int, x: Tensor, *tensors: Any) -> None:
    at = min(_GATHERED, _power_of_two(batch))
    batches, columns, m = -(-batch // at), tiling.columns, tiling.pattern.m
    if at > 1:  # so that one load brings all rows of an input
        rows = F.pad(x.view(batch, columns), (0, 0, 0, batches * at - batch)).view(batches, at, columns)
        x = torch.empty(batches, columns, at, device=x.device).copy_(rows.transpose(1, 2))
    k = max(32, min(128, 256 // at))
    # Eight programs of a multiprocessor have 36 KB on the way to it, as much as memory brings meanwhile.
    grid = _Grid.of(tiling.tiles, -(-tiling.kept // k), batches, 8 * _multiprocessors(x.device))
    exact = columns % m == 0 and m == _power_of_two(m)
    _launch(programs.gather, grid, tiling, batch, x, *tensors, K=k, AT=at, EXACT=exact)


def _expand(tiling: Tiling, batch: int, x: Tensor, values: Tensor, *tensors: Any) -> None:
    wide = x.dtype == torch.float32 or x.dtype != values.dtype
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    wide = wide or (x.device.type == "cpu" and x.dtype == torch.bfloat16)
    at = min(32 if wide else 64, max(16, _power_of_two(batch)))
    pieces = _pieces(tiling, 32 if wide else 128 if at == 16 else 64)  # more, and registers spill
    # One stage: fetching ahead goes through shared memory, and takes twice the instructions.
    blocks, batches = -(-tiling.rows // _EXPANDED), -(-batch // at)
    grid = _Grid.of(blocks, -(-tiling.groups // pieces["G"]), batches, 4 * _multiprocessors(x.device))
    _launch(
        programs.expand, grid, tiling, batch, x, values, *tensors, AT=at, WIDE=wide, num_stages=1, **pieces
    )


def _launch(
    program: Any,
    grid: _Grid,
    tiling: Tiling,
    batch: int,
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    y: Tensor,
    **constants: Any,
) -> None:
    """Launches gather or expand, and what adds up the slices."""
    whole, biased, narrow = grid.slices == 1, bias is not None, y.dtype == torch.bfloat16
    partial = x.new_empty(0 if whole else grid.slices * y.numel(), dtype=torch.float32)
    bias = partial if bias is None else bias  # some tensor, which is not read
    sizes = (
        batch,
        tiling.rows,
        tiling.columns,
        tiling.kept,
        tiling.indices_shape[1],
        grid.batches,
        grid.steps,
    )
    # What differs in the input alone is next to each other, so that memory is read once.
    program[(grid.blocks * grid.batches, grid.slices)](
        *(x, values, indices, bias, _bits(y), partial),
        *sizes,
        **_pattern(tiling),
        **constants,
        WHOLE=whole,
        BF16=narrow,
        BIASED=biased,
    )
    if not whole:
        programs.add_slices[(-(-y.numel() // _SUMS),)](
            partial,
            bias,
            _bits(y),
            y.numel(),
            tiling.rows,
            grid.slices,
            BLOCK=_SUMS,
            BF16=narrow,
            BIASED=biased,
        )


def _pattern(tiling: Tiling) -> dict[str, int]:
    return {"N": tiling.pattern.n, "M": tiling.pattern.m, "FIELDS": tiling.fields, "BITS": tiling.bits}


def _pieces(tiling: Tiling, columns: int) -> dict[str, Any]:
    """Returns the size of a piece that is made dense: whole groups of about so many columns."""
    width = _power_of_two(tiling.pattern.m)
    return {"WIDTH": width, "G": max(1, columns // width), "R": _EXPANDED}


def _power_of_two(number: int) -> int:
    """Returns the least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def _bits(tensor: Tensor) -> Tensor:
    """Returns where results are stored: bfloat16 as bits, which the programs round themselves."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _current(device: torch.device) -> Any:
    """Triton launches on the current device, whatever its arguments lie on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@lru_cache(maxsize=64)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
