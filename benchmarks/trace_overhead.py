"""What nmstep's bookkeeping costs: a training step with and without a sparsifier, in turn, in one run.

    python benchmarks/trace_overhead.py [--rounds 15] [--json FILE]

Each row is the median ratio of one iteration (forward, backward, step) of a 3-layer MLP with a
sparsifier attached to one of the same model with the same optimizer alone, and its spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import nmstep
from nmstep import TraceOptions

QUIET = TraceOptions(variance_every=0, layers_every=0)
CASES: dict[str, Callable[[nn.Module, torch.optim.Optimizer], object]] = {
    "dense, nothing recorded, gradients not looked at": lambda m, o: nmstep.sparsify(
        m, o, nmstep.Dense(), trace=QUIET, on_nonfinite="ignore"
    ),
    "dense, nothing recorded": lambda m, o: nmstep.sparsify(m, o, nmstep.Dense(), trace=QUIET),
    "dense, default recording": lambda m, o: nmstep.sparsify(m, o, nmstep.Dense()),
    "dense, variance every step": lambda m, o: nmstep.sparsify(
        m, o, nmstep.Dense(), trace=TraceOptions(variance_every=1)
    ),
    "STEP's dense phase (AutoSwitch)": lambda m, o: nmstep.sparsify(m, o, nmstep.STEP("2:4", 10**9)),
    "SR-STE 2:4, nothing recorded": lambda m, o: nmstep.sparsify(m, o, nmstep.SRSTE("2:4"), trace=QUIET),
    "SR-STE 2:4, default recording": lambda m, o: nmstep.sparsify(m, o, nmstep.SRSTE("2:4")),
}


def loop(
    attach: Callable[[nn.Module, torch.optim.Optimizer], object] | None, batch: int
) -> Callable[[], float]:
    """Returns a function that times one block of iterations, in seconds."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(1024, 1024), nn.ReLU())))
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-4)
    if attach is not None:
        attach(model, optimizer)
    x = torch.randn(batch, 1024)

    def block() -> float:
        started = time.perf_counter()
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return time.perf_counter() - started

    block()
    return block


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=512, help="rows of each batch")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    plain = loop(None, arguments.batch)
    rows = {}
    for name, attach in CASES.items():
        other = loop(attach, arguments.batch)
        ratios = sorted(other() / plain() for _ in range(arguments.rounds))
        rows[name] = {"median": statistics.median(ratios), "low": ratios[1], "high": ratios[-2]}
        print(f"{name:50s} {rows[name]['median']:.3f}  [{rows[name]['low']:.3f} … {rows[name]['high']:.3f}]")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
