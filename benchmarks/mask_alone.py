"""Choosing a mask, against copying the tensor and against the way of the published SR-STE code.

python benchmarks/mask_alone.py [--rounds 15] [--megaweights 16.8] [--device cuda] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from bars import SPARSE_PATTERNS, mask_bar
from layers import LAYOUTS
from published import argsort_mask
from record import Part, Row, alone, row_of
from settings import Settings
from torch import Tensor

from nmstep import NMPattern, kernels

__all__ = ["COPY", "PART"]

COPY = "÷ copying the tensor"
PATTERNS = (*SPARSE_PATTERNS, "1:32")


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows: every pattern on a Linear, 2:4 and 1:16 on the other layouts."""
    weights = settings.weights(16_777_216, 20_000)
    tensors = {layout: _tensor(layout, weights, settings.device) for layout in LAYOUTS}
    chosen = [
        (layout, pattern)
        for layout in LAYOUTS
        for pattern in (PATTERNS if layout == "Linear" else ("2:4", "1:16"))
    ]
    for layout, pattern in chosen:
        weight = tensors[layout]
        copy = partial(torch.empty_like(weight).copy_, weight)
        mask = partial(kernels.nm_mask, weight, pattern, dim=_dim(layout))
        timing = settings.in_turn(mask, copy)
        yield row_of(timing, COPY, f"{layout}, {pattern}", bar=mask_bar(settings.device))
    for layout, pattern in chosen:
        weight, dim = tensors[layout], _dim(layout)
        mask = partial(kernels.nm_mask, weight, pattern, dim=dim)
        sort = partial(argsort_mask, weight, NMPattern.parse(pattern), dim)
        timing = settings.in_turn(mask, sort)
        yield row_of(timing, "÷ argsort and scatter", f"{layout}, {pattern}")


def _tensor(layout: str, weights: int, device: torch.device) -> Tensor:
    torch.manual_seed(0)
    return next(LAYOUTS[layout](weights).to(device).parameters()).detach()


def _dim(layout: str) -> int:
    return 0 if layout == "Conv1D" else 1


PART = Part(name="mask", title="Choosing a mask, alone", measure=measure)

if __name__ == "__main__":
    alone(PART, __doc__)
