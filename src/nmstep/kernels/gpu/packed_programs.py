"""Products with packed weights in Triton's language. Imported only where Triton is.

A weight lies as :class:`nmstep.tiles.Tiling` says: values of (tiles, kept, sixteen rows), and the places of FIELDS
values in each word of (tiles, depth, sixteen rows). A program takes some rows of the weight, some of the input, and
one slice of what is kept. Where there are several slices, their sums are added afterwards, in their order.

Sums are fp32. Whatever stands in a word, nothing is read beside the input.
"""

# fmt: off
from __future__ import annotations

import triton
import triton.language as tl

from nmstep.kernels.gpu.programs import to_bfloat16

__all__ = ["add_slices", "expand", "gather", "unpack"]

_LANES = tl.constexpr(16)


@triton.jit
def _read(values, words, kept, depth, row, k, valid, FIELDS: tl.constexpr, BITS: tl.constexpr):
    """Returns values and places of (k, row), and zeros where not ``valid``.

    A tile may begin behind 2³¹ values, so that its offset has 64 bits; offsets within it have 32.
    """
    tile = (row // _LANES).to(tl.int64)
    lane = row % _LANES
    value = values + (tile * (kept * _LANES) + lane)[None, :] + (k * _LANES)[:, None]
    word = words + (tile * (depth * _LANES) + lane)[None, :] + (k // FIELDS * _LANES)[:, None]
    value = tl.load(value, mask=valid, other=0, eviction_policy="evict_first")  # the cache is the input's
    word = tl.load(word, mask=valid, other=0, eviction_policy="evict_first")
    return value, (word >> (k % FIELDS * BITS)[:, None]) & ((1 << BITS) - 1)


@triton.jit
def _stored(value, BF16: tl.constexpr):
    """Returns fp32 as it is stored: as bits where that is bfloat16."""
    if BF16:
        value = to_bfloat16(value)
    return value


@triton.jit
def _finish(total, y, partial, bias, row, at, batch, rows, WHOLE: tl.constexpr, BF16: tl.constexpr,
            BIASED: tl.constexpr):
    """Writes sums of (row ``at`` of the input, ``row`` of the weight): to y, or to a slice of ``partial``."""
    valid = (at < batch)[:, None] & (row < rows)[None, :]
    offsets = at.to(tl.int64)[:, None] * rows + row[None, :]
    if WHOLE:
        if BIASED:
            total += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)[None, :]
        tl.store(y + offsets, _stored(total, BF16), mask=valid)
    else:
        tl.store(partial + tl.program_id(1).to(tl.int64) * batch * rows + offsets, total, mask=valid)


@triton.jit
def gather(x, values, words, bias, y, partial, batch, rows, columns, kept, depth, batches, steps, N: tl.constexpr,
           M: tl.constexpr, FIELDS: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, K: tl.constexpr,
           AT: tl.constexpr, WHOLE: tl.constexpr, BF16: tl.constexpr, BIASED: tl.constexpr):
    """Every kept weight fetches its own inputs, which the cache holds: for few rows, or few weights that are kept.

    A program takes one tile, ``steps`` times K of its values, and AT rows of the input, which lie as (blocks of AT
    rows, columns, AT). Where EXACT, no word can name a column that is not there. Threads add up what they fetched,
    and meet at the end.
    """
    row = tl.program_id(0) // batches * _LANES + tl.arange(0, _LANES)
    first = tl.program_id(0) % batches * AT
    at = first + tl.arange(0, AT)
    begin = tl.program_id(1) * steps * K
    total = tl.zeros((K, _LANES), tl.float32) if AT == 1 else tl.zeros((K, _LANES, AT), tl.float32)
    x += first.to(tl.int64) * columns
    for step in range(steps):
        k = begin + step * K + tl.arange(0, K)
        value, place = _read(values, words, kept, depth, row, k, (k < kept)[:, None], FIELDS, BITS)
        column = (tl.minimum(k, kept - 1) // N * M)[:, None] + place
        if not EXACT:
            column = tl.minimum(column, columns - 1)
        value = value.to(tl.float32)
        if AT == 1:  # without a dimension more, nothing moves between threads
            fetched = tl.load(x + column)
        else:
            value = value[:, :, None]
            fetched = tl.load(x + (column * AT)[:, :, None] + tl.arange(0, AT)[None, None, :])
        total += value * fetched.to(tl.float32)
    total = tl.sum(total, axis=0)
    total = total[None, :] if AT == 1 else tl.trans(total)
    _finish(total, y, partial, bias, row, at, batch, rows, WHOLE, BF16, BIASED)


@triton.jit
def _put(dense, values, words, kept, depth, row, group, valid, j, N: tl.constexpr, WIDTH: tl.constexpr,
         FIELDS: tl.constexpr, BITS: tl.constexpr):
    """Puts value ``j`` of each group where it stands."""
    value, where = _read(values, words, kept, depth, row, group * N + j, valid, FIELDS, BITS)
    place = tl.arange(0, WIDTH)[None, :, None]
    return tl.where(where[:, None, :] == place, value[:, None, :], dense)


@triton.jit
def _dense(values, words, kept, depth, rows, row, group, N: tl.constexpr, WIDTH: tl.constexpr, G: tl.constexpr,
           R: tl.constexpr, FIELDS: tl.constexpr, BITS: tl.constexpr):
    """Returns (column, row) of the weight, WIDTH columns for each group, with zeros where nothing is kept."""
    padded = (rows + _LANES - 1) // _LANES * _LANES  # sixteen rows are there or not, so that they are read at once
    valid = (group * N < kept)[:, None] & (row < padded)[None, :]
    dense = tl.zeros((G, WIDTH, R), values.dtype.element_ty)
    if N <= 4:
        for j in tl.static_range(N):
            dense = _put(dense, values, words, kept, depth, row, group, valid, j, N, WIDTH, FIELDS, BITS)
    else:
        for j in range(N):
            dense = _put(dense, values, words, kept, depth, row, group, valid, j, N, WIDTH, FIELDS, BITS)
    return dense.reshape((G * WIDTH, R))


@triton.jit
def _columns(first, columns, M: tl.constexpr, WIDTH: tl.constexpr, G: tl.constexpr):
    """Returns the columns of G groups from the ``first`` on, WIDTH for each, and which of them exist."""
    index = tl.arange(0, G * WIDTH)
    place = index % WIDTH
    column = (first + index // WIDTH) * M + place
    return column, (place < M) & (column < columns)


@triton.jit
def expand(x, values, words, bias, y, partial, batch, rows, columns, kept, depth, batches, steps, N: tl.constexpr,
           M: tl.constexpr, FIELDS: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr, G: tl.constexpr,
           R: tl.constexpr, AT: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, BF16: tl.constexpr,
           BIASED: tl.constexpr):
    """A piece of the weight is made dense on the chip, and multiplied there: for more rows.

    A program takes R rows of the weight, ``steps`` times G of their groups, and AT rows of the input. Operands are
    fp32 where WIDE, and else what x and values both are, for the matrix units.
    """
    row = tl.program_id(0) // batches * R + tl.arange(0, R)
    at = tl.program_id(0) % batches * AT + tl.arange(0, AT)
    inputs = (x + at.to(tl.int64) * columns)[:, None]
    begin = tl.program_id(1) * steps * G
    total = tl.zeros((AT, R), tl.float32)
    for step in range(steps):
        first = begin + step * G
        group = first + tl.arange(0, G)
        dense = _dense(values, words, kept, depth, rows, row, group, N, WIDTH, G, R, FIELDS, BITS)
        column, there = _columns(first, columns, M, WIDTH, G)
        fetched = tl.load(inputs + column[None, :], mask=(at < batch)[:, None] & there[None, :], other=0)
        if WIDE:
            fetched, dense = fetched.to(tl.float32), dense.to(tl.float32)
        total = tl.dot(fetched, dense, total, input_precision="ieee")
    _finish(total, y, partial, bias, row, at, batch, rows, WHOLE, BF16, BIASED)


@triton.jit
def unpack(values, words, weight, rows, columns, kept, depth, N: tl.constexpr, M: tl.constexpr,
           FIELDS: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
           BF16: tl.constexpr):
    """Writes the dense weight, (rows, columns)."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    first = tl.program_id(1) * G
    group = first + tl.arange(0, G)
    dense = _dense(values, words, kept, depth, rows, row, group, N, WIDTH, G, R, FIELDS, BITS)
    column, there = _columns(first, columns, M, WIDTH, G)
    offsets = row.to(tl.int64)[None, :] * columns + column[:, None]
    tl.store(weight + offsets, _stored(dense.to(tl.float32), BF16), mask=there[:, None] & (row < rows)[None, :])


@triton.jit
def add_slices(partial, bias, y, size, rows, slices, BLOCK: tl.constexpr, BF16: tl.constexpr, BIASED: tl.constexpr):
    """Adds up slices of ``size`` sums, in their order, and the bias."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = offset < size
    total = tl.zeros((BLOCK,), tl.float32)
    for slice_ in range(slices):
        total += tl.load(partial + tl.full((), slice_, tl.int64) * size + offset, mask=valid, other=0)
    if BIASED:
        total += tl.load(bias + offset % rows, mask=valid, other=0).to(tl.float32)
    tl.store(y + offset, _stored(total, BF16), mask=valid)
