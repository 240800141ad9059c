"""What nmstep's bookkeeping costs: a training iteration with and without a sparsifier, in turn, in one run.

    python benchmarks/trace_overhead.py [--rounds 15] [--batch 512] [--threads 2] [--device cuda] [--json FILE]

Each row is the median ratio of one iteration (forward, backward, step) of a 3-layer MLP with a sparsifier attached
to one of the same model with the same optimizer alone, and its spread. A round takes ten iterations of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from methods import LR, Method, autoswitch, nmstep_adamw
from record import Part, Row, alone, row_of
from settings import Settings
from torch import nn

import nmstep
from nmstep import Recipe, TraceOptions
from nmstep.timing import Step

__all__ = ["PART"]

QUIET = TraceOptions(variance_every=0, layers_every=0)
EVERY = TraceOptions(variance_every=1)


def dense(pattern: str) -> Recipe:
    """Returns the recipe without masks."""
    del pattern
    return nmstep.Dense()


CASES: dict[str, Method] = {
    "dense, nothing recorded or looked at": nmstep_adamw(dense, trace=QUIET, on_nonfinite="ignore"),
    "dense, nothing recorded": nmstep_adamw(dense, trace=QUIET),
    "dense, default recording": nmstep_adamw(dense),
    "dense, variance every step": nmstep_adamw(dense, trace=EVERY),
    "STEP's dense phase (AutoSwitch)": nmstep_adamw(autoswitch),
    "SR-STE 2:4, nothing recorded": nmstep_adamw(nmstep.SRSTE, trace=QUIET),
    "SR-STE 2:4, default recording": nmstep_adamw(nmstep.SRSTE),
}


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows."""
    batch, width = settings.batch or settings.pick(512, 8), settings.pick(1024, 64)
    plain = _iteration(lambda model, _: nmstep.AdamW(model.parameters(), lr=LR), batch, width, settings)
    for name, method in CASES.items():
        ours = _iteration(method, batch, width, settings)
        timing = settings.in_turn(ours, plain, calls=10)
        yield row_of(timing, f"3 Linear {width}×{width}, {batch} rows", name)


def _iteration(method: Method, batch: int, width: int, settings: Settings) -> Step:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*layers).to(settings.device)
    optimizer = method(model, "2:4")
    x = torch.randn(batch, width, device=settings.device)

    def iteration() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return iteration


PART = Part(
    name="bookkeeping", title="An iteration with a sparsifier ÷ with nmstep.AdamW alone", measure=measure
)

if __name__ == "__main__":
    alone(PART, __doc__)
