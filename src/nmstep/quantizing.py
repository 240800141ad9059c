"""Kept weights as int8 with a scale for each output row."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dequantized", "from_steps", "in_steps", "quantized"]

_MOST = 127


@torch.no_grad()
def quantized(values: Tensor) -> tuple[Tensor, Tensor, float]:
    """Returns values as int8, the scale of each row, and how much was lost.

    A row's largest magnitude becomes 127, and the others are rounded to the nearest step; zeros stay zeros.

    Args:
        values: as :func:`nmstep.tiles.pack_rows` gives them, shape (tiles, kept, sixteen rows), floating.

    Returns:
        int8 values of the same shape, float32 scales of shape (tiles, sixteen rows), and the root mean square of
        what rounding changed, relative to that of the values.

    Raises:
        ValueError: a value is not finite.

    Example:
        >>> whole, scales, error = quantized(torch.tensor([[[1.27]], [[0.502]]]))
        >>> whole.flatten().tolist(), f"{scales[0, 0]:.2f}", f"{error:.3f}"
        ([127, 127], '0.01', '0.000')
    """
    values = values.float()
    largest = values.abs().amax(1)
    if not bool(largest.isfinite().all()):
        raise ValueError("int8 values cannot hold a weight that is NaN or infinite")
    # Not less than the least normal number: a smaller scale would be coarse, or zero.
    scales = torch.where(largest > 0, (largest / _MOST).clamp_(min=torch.finfo(torch.float32).tiny), 0.0)
    whole = (values / scales.where(scales > 0, 1)[:, None]).round_().clamp_(-_MOST, _MOST).to(torch.int8)
    most = float(largest.max()) or 1.0  # norms of numbers up to one do not overflow
    lost, size = ((x / most).double().norm() for x in (dequantized(whole, scales) - values, values))
    return whole, scales, float(lost / size) if size > 0 else 0.0


def dequantized(values: Tensor, scales: Tensor | None) -> Tensor:
    """Returns the float32 values that int8 ones stand for, or the values themselves where they have no scales.

    Args:
        values: shape (tiles, kept, sixteen rows).
        scales: shape (tiles, sixteen rows), or None.
    """
    return values if scales is None else values.float() * scales[:, None]


@torch.no_grad()
def in_steps(rows: Tensor, scales: Tensor) -> Tensor:
    """Returns the int8 numbers of steps that a dense weight is, which was made of such with these scales.

    Args:
        rows: shape (outputs, inputs), floating; rounding to bfloat16 or float16 has not moved it half a step.
        scales: shape (tiles, sixteen rows), as :func:`quantized` gives them.
    """
    steps = scales.flatten()[: len(rows), None]
    whole = (rows.float() / steps.where(steps > 0, 1)).round_()
    return whole.clamp_(-_MOST, _MOST).to(torch.int8)


def from_steps(whole: Tensor, scales: Tensor) -> Tensor:
    """Returns the float32 weight of which :func:`in_steps` gives these numbers of steps.

    Args:
        whole: int8, shape (outputs, inputs).
        scales: shape (tiles, sixteen rows).
    """
    return whole.float() * scales.flatten()[: len(whole), None]
