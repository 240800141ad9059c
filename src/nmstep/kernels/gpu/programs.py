"""The kernels in Triton's language. Imported only where Triton is.

A launch covers many parameters of a kind. Row i of ``rows`` says where parameter i lies: the addresses of its
tensors, its number of groups, the size of the dimension that groups run along, and how many values lie inside of
that dimension. ``blocks`` gives each program its row and its block of groups. Values are held as a tile of
groups × places in the group; fp32 arithmetic throughout.

16-bit floats of the bfloat16 kind are rounded here by hand, to nearest with ties to even, as integers: the same
bits on every device, and in Triton's interpreter, whose own conversion cuts off.
"""

# fmt: off
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["COLUMNS", "NUMBERS", "adam_step", "mask", "split", "to_bfloat16"]

#: The columns of ``rows``.
COLUMNS = ("groups", "size", "inner", "p", "pruned", "grad", "exp_avg", "exp_avg_sq")
#: The columns of ``numbers``, as ``nmstep.kernels.adam`` computes them for each step.
NUMBERS = (
    "sign",
    "refine",
    "coupled",
    "decay",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "step_size",
    "eps",
    "eps_root",
    "correction2",
    "sqrt_correction2",
)
_WIDTH = tl.constexpr(len(COLUMNS))
_NUMBERS = tl.constexpr(len(NUMBERS))


@triton.jit
def _pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    if DTYPE == "bfloat16":
        pointer = address.to(tl.pointer_type(tl.int16))
    elif DTYPE == "float16":
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _load(address, offsets, valid, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    value = tl.load(_pointer(address, DTYPE, ALIGNED) + offsets, mask=valid, other=0)
    if DTYPE == "bfloat16":
        value = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def to_bfloat16(value):
    """Returns the bits of fp32 rounded to bfloat16."""
    bits = value.to(tl.int32, bitcast=True)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, nearest).to(tl.int16)


@triton.jit
def _store(address, offsets, value, valid, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    if DTYPE == "bfloat16":
        value = to_bfloat16(value)
    elif DTYPE == "float16":
        value = value.to(tl.float16)
    tl.store(_pointer(address, DTYPE, ALIGNED) + offsets, value, mask=valid)


@triton.jit
def _rounded(value, DTYPE: tl.constexpr):
    """Returns the value as a tensor of the dtype would hold it."""
    if DTYPE == "bfloat16":
        value = (to_bfloat16(value).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == "float16":
        value = value.to(tl.float16).to(tl.float32)
    return value


@triton.jit
def _places(rows, blocks, M: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, FLAT: tl.constexpr,
            EVEN: tl.constexpr, WIDE: tl.constexpr):
    """Returns a program's row, the offsets of its tile, and which of them exist.

    What lies side by side in memory lies side by side in the tile: groups × places where groups are FLAT, one after
    the other and none of them short, else places × groups. EVEN is a power of two that divides ``inner``; offsets
    have 64 bits where WIDE.
    """
    program = tl.program_id(0)
    parameter = tl.load(blocks + 2 * program)
    row = rows + parameter.to(tl.int64) * _WIDTH
    block = tl.load(blocks + 2 * program + 1)
    groups = tl.load(row)
    size = tl.load(row + 1)
    inner = tl.load(row + 2)
    if WIDE:
        block = block.to(tl.int64)
    else:
        groups, size, inner = groups.to(tl.int32), size.to(tl.int32), inner.to(tl.int32)
    group = block * GROUPS + tl.arange(0, GROUPS)
    place = tl.arange(0, WIDTH)
    if FLAT:
        offsets = group[:, None] * M + place[None, :]
        valid = (group < groups)[:, None] & (place < M)[None, :]
    else:
        inner = tl.multiple_of(inner, EVEN)
        in_row = (size + M - 1) // M
        line = group // inner
        along = (line % in_row)[None, :] * M + place[:, None]
        offsets = ((line // in_row)[None, :] * size + along) * inner + (group % inner)[None, :]
        valid = (group < tl.multiple_of(groups, EVEN))[None, :] & (place < M)[:, None] & (along < size)
    return parameter, row, offsets, valid


@triton.jit
def _kept(value, valid, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, FLAT: tl.constexpr):
    """Returns the mask of a tile: N times the largest of each group, or M - N times the smallest is left out.

    Keys are integers in the order of magnitudes, every NaN equal and above infinity. What does not exist goes
    last where the largest are chosen, and first among the M where the smallest are left out, so that a short
    group of r keeps min(N, r) either way.
    """
    AXIS: tl.constexpr = 1 if FLAT else 0
    place = tl.expand_dims(tl.arange(0, WIDTH), 1 - AXIS)
    keys = tl.minimum(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7F800001)
    keys = tl.where(valid, keys, -1)
    if 2 * N <= M:
        kept = keys < -1
        for _ in range(N):
            best = tl.max(keys, axis=AXIS, keep_dims=True)
            taken = place == tl.min(tl.where(keys == best, place, WIDTH), axis=AXIS, keep_dims=True)
            kept = kept | taken
            keys = tl.where(taken, -2, keys)
    else:
        keys = tl.where(place < M, keys, 0x7FFFFFFF)
        kept = keys >= -1
        for _ in range(M - N):
            least = tl.min(keys, axis=AXIS, keep_dims=True)
            dropped = place == tl.max(tl.where(keys == least, place, -1), axis=AXIS, keep_dims=True)
            kept = kept & (dropped == 0)
            keys = tl.where(dropped, 0x7FFFFFFF, keys)
    return kept


@triton.jit
def mask(rows, blocks, to, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
         FLAT: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
         ALIGNED: tl.constexpr):
    """Writes the mask of one tensor to ``to``, a pointer to bytes laid out as the tensor is."""
    _, row, offsets, valid = _places(rows, blocks, M, WIDTH, GROUPS, FLAT, EVEN, WIDE)
    value = _load(tl.load(row + 3), offsets, valid, DTYPE, ALIGNED)
    tl.store(to + offsets, _kept(value, valid, N, M, WIDTH, FLAT).to(tl.uint8), mask=valid)


@triton.jit
def _write_split(row, value, offsets, valid, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr,
                 FLAT: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    kept = _kept(value, valid, N, M, WIDTH, FLAT)
    _store(tl.load(row + 3), offsets, tl.where(kept, value, 0.0), valid, DTYPE, ALIGNED)
    _store(tl.load(row + 4), offsets, tl.where(kept, 0.0, value), valid, DTYPE, ALIGNED)


@triton.jit
def split(rows, blocks, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
          FLAT: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
          ALIGNED: tl.constexpr):
    """Splits weights into what is kept and what is cut."""
    _, row, offsets, valid = _places(rows, blocks, M, WIDTH, GROUPS, FLAT, EVEN, WIDE)
    value = _load(tl.load(row + 3), offsets, valid, DTYPE, ALIGNED)
    _write_split(row, value, offsets, valid, N, M, WIDTH, FLAT, DTYPE, ALIGNED)


@triton.jit
def _gradient(row, number, latent, pruned, offsets, valid, REFINED: tl.constexpr, COUPLED: tl.constexpr,
              DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    grad = tl.load(number) * _load(tl.load(row + 5), offsets, valid, DTYPE, ALIGNED)
    if REFINED:  # SR-STE's term for what is cut
        grad += pruned * tl.load(number + 1)
    if COUPLED:
        grad += latent * tl.load(number + 2)
    return grad


@triton.jit
def _first_moment(row, number, grad, offsets, valid, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(row + 6)
    first = _load(address, offsets, valid, DTYPE, ALIGNED)
    share = tl.load(number + 4)
    near = share < 0.5  # as torch's lerp, from the nearer end
    first = tl.where(near, share, share - 1.0) * (grad - first) + tl.where(near, first, grad)
    first = _rounded(first, DTYPE)
    _store(address, offsets, first, valid, DTYPE, ALIGNED)
    return first


@triton.jit
def _second_moment(row, number, grad, partial, offsets, valid, VARIANCE: tl.constexpr, SUMS: tl.constexpr,
                   SECOND: tl.constexpr, ALIGNED: tl.constexpr):
    """Returns the denominator, before eps."""
    address = tl.load(row + 7)
    before = _load(address, offsets, valid, SECOND, ALIGNED)
    second = before
    if VARIANCE != "frozen":
        second = _rounded(tl.load(number + 6) * grad * grad + before * tl.load(number + 5), SECOND)
        _store(address, offsets, second, valid, SECOND, ALIGNED)
    if SUMS:
        to = partial + 3 * tl.program_id(0)
        if VARIANCE != "frozen":
            change = tl.where(valid, tl.abs(before - grad * grad), 0.0)
            tl.store(to, tl.sum(change) * tl.load(number + 6))
        tl.store(to + 1, tl.sum(tl.where(valid, second, 0.0)))
        tl.store(to + 2, tl.sum(tl.where(valid, second * second, 0.0)))
    if VARIANCE == "frozen":
        root = tl.sqrt_rn(second + tl.load(number + 9))
    elif VARIANCE == "floored":
        root = tl.sqrt_rn(tl.div_rn(second, tl.load(number + 10)) + tl.load(number + 9))
    else:
        root = tl.div_rn(tl.sqrt_rn(second), tl.load(number + 11))
    return root


@triton.jit
def adam_step(rows, blocks, numbers, partial, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr,
              GROUPS: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
              DTYPE: tl.constexpr, ALIGNED: tl.constexpr, SECOND: tl.constexpr, SPARSE: tl.constexpr,
              VARIANCE: tl.constexpr, REFINED: tl.constexpr, COUPLED: tl.constexpr, SUMS: tl.constexpr):
    """One step of Adam; of a sparse parameter on the latent weight, which is split again.

    With ``SUMS``, row i of ``partial`` takes program i's Σ|v_t − v_{t−1}|, Σ v_t and Σ v_t².
    """
    parameter, row, offsets, valid = _places(rows, blocks, M, WIDTH, GROUPS, FLAT, EVEN, WIDE)
    number = numbers + parameter * _NUMBERS
    latent = _load(tl.load(row + 3), offsets, valid, DTYPE, ALIGNED)
    pruned = latent
    if SPARSE:
        pruned = _load(tl.load(row + 4), offsets, valid, DTYPE, ALIGNED)
        latent += pruned
    grad = _gradient(row, number, latent, pruned, offsets, valid, REFINED, COUPLED, DTYPE, ALIGNED)
    first = _first_moment(row, number, grad, offsets, valid, DTYPE, ALIGNED)
    root = _second_moment(row, number, grad, partial, offsets, valid, VARIANCE, SUMS, SECOND, ALIGNED)
    moved = latent * tl.load(number + 3) - tl.div_rn(tl.load(number + 7) * first, root + tl.load(number + 8))
    if SPARSE:
        _write_split(row, _rounded(moved, DTYPE), offsets, valid, N, M, WIDTH, FLAT, DTYPE, ALIGNED)
    else:
        _store(tl.load(row + 3), offsets, moved, valid, DTYPE, ALIGNED)
