"""One optimizer step on a large layer, of every layout and at every pattern, against torch's fused AdamW.

    python benchmarks/training_step.py [--rounds 15] [--megaweights 16.8] [--device cuda] [--json FILE]

A step is ``optimizer.step()`` of nmstep.AdamW with a sparsifier and its trace. The look for NaN in the
gradients, which a sparsifier takes by default and torch does not, is left out but where a row says so. Two
programs take turns in one process; each row is the median of their ratio over rounds, and its spread without
the two extremes. A sample of every layer falls on each hundredth step: the median of single steps leaves it
out, and the row of a hundred steps holds it. The first row is torch's step against itself: what the machine's
noise does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import published
from bars import DENSE_STEP, SPARSE_PATTERNS, SPARSE_STEP
from cases import Case, measure_cases
from layers import LAYOUTS, aliased, weights_in, written
from methods import autoswitch, frozen, frozen_narrow, nmstep_adamw, torch_adamw, updated
from record import Part, Row, alone
from settings import Settings

import nmstep

__all__ = ["PART"]

PATTERNS = (*SPARSE_PATTERNS, "1:32")
# torch does not look for NaN before a step, so what is compared with its step does not either.
BARE: dict[str, Any] = {"on_nonfinite": "ignore"}
DENSE = (
    Case(name="torch fused, once more", method=torch_adamw(fused=True)),
    Case(name="torch foreach", method=torch_adamw(foreach=True)),
    Case(name="torch for-loop", method=torch_adamw(foreach=False)),
    Case(name="dense, AutoSwitch", method=nmstep_adamw(autoswitch, fused=True, **BARE), bar=DENSE_STEP),
    Case(name="the same, looking for NaN", method=nmstep_adamw(autoswitch, fused=True), bar=DENSE_STEP),
    Case(name="the same, fused unset", method=nmstep_adamw(autoswitch)),
)
FROZEN = (
    *(
        Case(
            name=f"frozen variance, {pattern}",
            method=nmstep_adamw(frozen, **BARE),
            pattern=pattern,
            sparse=True,
            bar=SPARSE_STEP if pattern in SPARSE_PATTERNS else None,
        )
        for pattern in PATTERNS
    ),
    Case(name="2:4, looking for NaN", method=nmstep_adamw(frozen), sparse=True, bar=SPARSE_STEP),
)
OTHERS = (
    Case(
        name="frozen variance, 2:4, 100 steps",
        method=nmstep_adamw(frozen, **BARE),
        sparse=True,
        bar=SPARSE_STEP,
        calls=100,
    ),
    Case(name="frozen in bfloat16, 2:4", method=nmstep_adamw(frozen_narrow, **BARE), sparse=True),
    Case(name="variance updated, 2:4", method=nmstep_adamw(updated, **BARE), sparse=True),
    Case(name="SR-STE, 2:4", method=nmstep_adamw(nmstep.SRSTE, **BARE), sparse=True),
    Case(name="SR-STE, 2:4, as published", method=published.sr_ste),
    Case(name="ASP, 2:4", method=nmstep_adamw(nmstep.ASP, **BARE), sparse=True),
    Case(name="ASP, 2:4, as published", method=published.asp, sparse=True),
)
CAPTURED = tuple(
    Case(
        name=f"{name}, in a CUDA graph",
        method=nmstep_adamw(recipe, capturable=True, **BARE),
        sparse=sparse,
        captured=True,
    )
    for name, recipe, sparse in (
        ("dense, AutoSwitch", autoswitch, False),
        ("frozen variance, 2:4", frozen, True),
        ("SR-STE, 2:4", nmstep.SRSTE, True),
    )
)


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows: all methods on a Linear, the frozen phase on the other layouts and on the worst size."""
    weights = settings.weights(16_777_216, 20_000)
    for layout, make in LAYOUTS.items():
        graphs = CAPTURED if settings.device.type == "cuda" else ()
        cases = (*DENSE, *FROZEN, *OTHERS, *graphs) if layout == "Linear" else FROZEN
        yield from measure_cases(
            f"{layout}, {written(weights_in(make(weights)))}",
            partial(make, weights),
            cases,
            settings,
        )
    yield from measure_cases(
        f"Linear of a power of two, {written(weights_in(aliased(weights)))}",
        partial(aliased, weights),
        FROZEN,
        settings,
    )


PART = Part(name="training_step", title="An optimizer step ÷ torch's fused AdamW", measure=measure)

if __name__ == "__main__":
    alone(PART, __doc__)
