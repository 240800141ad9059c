"""One optimizer step from ten thousand to a hundred million weights, against torch's fused AdamW.

    python benchmarks/sizes.py [--rounds 15] [--threads 2] [--device cuda] [--json FILE]

As a user attaches it, with the look for NaN, on one square Linear of each size and on many small ones. A step that
takes less than 2 ms is timed as a hundred in a row, with the sample of every layer that falls on one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import published
from bars import DENSE_STEP, SPARSE_STEP
from cases import Case, measure_cases
from layers import linear, weights_in, written
from methods import autoswitch, frozen, nmstep_adamw, torch_adamw
from record import Part, Row, alone
from settings import Settings
from torch import nn

import nmstep

__all__ = ["PART"]

FUSED = "torch fused"
CASES = (
    Case(name=FUSED, method=torch_adamw(fused=True)),
    Case(name="torch foreach", method=torch_adamw(foreach=True)),
    Case(name="torch for-loop", method=torch_adamw(foreach=False)),
    Case(name="dense, AutoSwitch", method=nmstep_adamw(autoswitch, fused=True), bar=DENSE_STEP),
    Case(name="STEP, 2:4", method=nmstep_adamw(frozen), sparse=True, bar=SPARSE_STEP),
    Case(name="STEP, 1:16", method=nmstep_adamw(frozen), pattern="1:16", sparse=True, bar=SPARSE_STEP),
    Case(name="SR-STE, 2:4", method=nmstep_adamw(nmstep.SRSTE), sparse=True),
    Case(name="SR-STE, 2:4, as published", method=published.sr_ste),
    Case(name="ASP, 2:4, as published", method=published.asp, sparse=True),
)


def many(count: int, weights: int) -> nn.Module:
    """Returns a model of many small layers."""
    return nn.ModuleList(linear(weights) for _ in range(count))


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows, size by size."""
    full = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    for asked in settings.pick(full, full[:2]):
        weights = weights_in(linear(asked))
        yield from measure_cases(written(weights), partial(linear, asked), CASES, settings, weights=weights)
    count = settings.pick(200, 10)
    section = f"{count} layers of {written(weights_in(linear(10_000)))}"
    yield from measure_cases(section, partial(many, count, 10_000), CASES, settings)


PART = Part(name="sizes", title="An optimizer step by size ÷ torch's fused AdamW", measure=measure)

if __name__ == "__main__":
    alone(PART, __doc__)
