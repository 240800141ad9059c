"""Whether the kernels' threads and torch's fight: steps between matrix products, against both one after the other.

    python benchmarks/thread_pools.py [--rounds 15] [--threads 2] [--json FILE]

Two pools of threads that spin while they wait would take turns on the same cores, and cost several times. torch's
own step is measured beside ours: what it loses as well is the caches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from layers import linear, step_alone, weights_in, written
from methods import Method, frozen, nmstep_adamw, torch_adamw
from record import Part, Row, alone, row_of
from settings import Settings

from nmstep.timing import Step

__all__ = ["PART"]

METHODS: dict[str, Method] = {"torch fused": torch_adamw(fused=True), "STEP, 2:4": nmstep_adamw(frozen)}


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows; none on a GPU, where the kernels have no threads."""
    if settings.device.type != "cpu":
        return
    calls, side = settings.pick((30, 512), (3, 64))
    a, b = torch.randn(side, side), torch.randn(side, side)
    for asked in (100_000, settings.pick(1_000_000, 10_000)):
        for name, method in METHODS.items():
            torch.manual_seed(0)
            layer = linear(asked)
            step = step_alone(layer, method(layer, "2:4"))
            section = f"{written(weights_in(layer))}, {side}×{side} products"
            yield _row(lambda: a @ b, step, calls, settings, section, name)


def _row(product: Step, step: Step, calls: int, settings: Settings, section: str, name: str) -> Row:
    def alternating() -> None:
        for _ in range(calls):
            product()
            step()

    def apart() -> None:
        for work in (product, step):
            for _ in range(calls):
                work()

    timing = settings.in_turn(alternating, apart, calls=1)
    return row_of(timing, section, name)


PART = Part(
    name="threads", title="Steps and matrix products alternating ÷ one after the other", measure=measure
)

if __name__ == "__main__":
    alone(PART, __doc__)
