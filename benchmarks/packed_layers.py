"""Packed layers against torch's dense ones, on the CPU: how many times as fast.

python benchmarks/packed_layers.py [--rounds 15] [--threads 1] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from bars import PACKED, PACKED_NARROW, SPARSE_PATTERNS
from record import Part, Row, alone, row_of
from settings import Settings
from torch import nn

import nmstep
from nmstep.timing import Step

__all__ = ["PART", "speed_up"]

SHAPES = (
    (4096, 4096),
    (3072, 768),
    (768, 3072),
    (768, 768),
)  # outputs × inputs; the last three are BERT-Base's


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows: every pattern, shape and number of rows in fp32 and bfloat16."""
    shapes = settings.pick(SHAPES, ((64, 64),))
    for place, pattern in enumerate(SPARSE_PATTERNS):
        for shape in shapes:
            for dtype, bars in ((torch.float32, PACKED), (torch.bfloat16, PACKED_NARROW)):
                for rows, bar in bars.items():
                    yield _row(shape, pattern, rows, dtype, bar[place], settings)


def _row(
    shape: tuple[int, int], pattern: str, rows: int, dtype: torch.dtype, bar: float, settings: Settings
) -> Row:
    torch.manual_seed(0)
    dense = nn.Linear(shape[1], shape[0]).requires_grad_(False)
    dense.weight.mul_(nmstep.nm_mask(dense.weight, pattern))
    dense.to(dtype)
    packed, x = nmstep.pack(dense, pattern), torch.randn(rows, shape[1], dtype=dtype)
    kind = "fp32" if dtype == torch.float32 else "bf16"
    with torch.inference_mode():
        return speed_up(
            lambda: packed(x),
            lambda: dense(x),
            settings,
            section=f"{shape[0]} × {shape[1]}, {pattern}",
            name=f"{rows} row{'s' if rows > 1 else ''}, {kind}",
            bar=bar,
        )


def speed_up(
    packed: Step, dense: Step, settings: Settings, *, section: str, name: str, bar: float | None = None
) -> Row:
    """Returns how many times as fast the first of two programs is, with its milliseconds."""
    timing = settings.in_turn(dense, packed)  # in this order, so that more is faster
    row = row_of(timing, section, name, bar=bar)
    return replace(row, ms=timing.other_ms, other_ms=timing.ms, faster=True)


PART = Part(
    name="packed_layers",
    title="A packed layer: times as fast as torch's dense one",
    measure=measure,
    unit="times",
)

if __name__ == "__main__":
    alone(PART, __doc__)
