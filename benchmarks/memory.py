"""Memory over dense AdamW, in words for each sparse weight: the optimizer's state, and the peak of a program.

    python benchmarks/memory.py [--rounds 15] [--megaweights 75.5] [--device cuda] [--json FILE]

Each method trains an MLP for some iterations in a fresh process; everything a sparsifier records by default is
recorded on the way. The peak is that of resident memory (VmHWM; what getrusage says is passed on by the process
that started this one), or of what torch allocated on a GPU. A peak may hold a temporary as large as one parameter
besides the state, here an eighth of the weights, and its bar allows for it.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import published
import torch
from bars import WORDS
from layers import linear, weights_in
from methods import Method, autoswitch, frozen, nmstep_adamw, torch_adamw, updated
from record import Part, Row, alone
from settings import Settings, parser, settings_of
from torch import Tensor, nn

import nmstep
from nmstep import TraceOptions
from nmstep.experiments.resources import peak_memory_mb, reset_peak_memory

__all__ = ["PART"]

SOON = TraceOptions(variance_every=2, layers_every=2)  # all that is recorded by default, in few iterations
FUSED = "torch fused"
NEVER = TraceOptions(variance_every=0, layers_every=0)
LAYERS, ITERATIONS, PROCESSES = 8, 6, 3
LARGE = LAYERS * 3072**2  # a layer of more than 32 MiB, which the C library gives back as soon as it is free
METHODS: dict[str, Method] = {
    FUSED: torch_adamw(fused=True),
    "torch foreach": torch_adamw(foreach=True),
    "dense, AutoSwitch": nmstep_adamw(autoswitch, fused=True, trace=SOON),
    "STEP, 2:4": nmstep_adamw(frozen, trace=SOON),
    "STEP, 2:4, nothing recorded": nmstep_adamw(frozen, trace=NEVER),
    "STEP, variance updated, 2:4": nmstep_adamw(updated, trace=SOON),
    "SR-STE, 2:4": nmstep_adamw(nmstep.SRSTE, trace=SOON),
    "SR-STE, 2:4, as published": published.sr_ste,
    "ASP, 2:4": nmstep_adamw(nmstep.ASP, trace=SOON),
    "ASP, 2:4, as published": published.asp,
}
BARS = {  # words of state over dense AdamW: none before the switch, one after it
    "dense, AutoSwitch": 0.0,
    "STEP, 2:4": WORDS,
    "STEP, 2:4, nothing recorded": WORDS,
    "SR-STE, 2:4": WORDS,
}


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows of the state, then those of the peak."""
    processes = settings.pick(min(settings.rounds, PROCESSES), 1)
    names = settings.pick(list(METHODS), [FUSED, "STEP, 2:4"])
    found = {name: [_child(name, settings) for _ in range(processes)] for name in names}
    sections = {
        "state": ("Optimizer state, extra words", 0.0),
        "peak": ("Peak, extra words", 1 / LAYERS),
    }
    for key, (section, allowed) in sections.items():
        dense = sum(child[key] for child in found[FUSED]) / processes
        for name, children in found.items():
            words = [(child[key] - dense) / (4 * child["sparse"]) for child in children]
            bar = BARS[name] + allowed if name in BARS else None
            yield Row(
                section=section,
                name=name,
                value=statistics.median(words),
                low=min(words),
                high=max(words),
                bar=bar,
            )


def train(name: str, settings: Settings) -> dict[str, float]:
    """Returns the weights that may be sparse, and the bytes of state and peak that training them takes."""
    _iterate(name, LAYERS * 4096, settings)  # code and threads come into memory
    gc.collect()
    reset_peak_memory(settings.device)
    before = peak_memory_mb(settings.device) or 0.0
    sparse, state = _iterate(name, settings.weights(LARGE, 2_000_000), settings)
    peak = peak_memory_mb(settings.device) or 0.0
    return {"sparse": sparse, "state": state, "peak": 1e6 * (peak - before)}


def _iterate(name: str, weights: int, settings: Settings) -> tuple[int, int]:
    """Trains for some iterations, and returns the number of weights and the bytes of the optimizer's state."""
    torch.manual_seed(0)
    model = nn.Sequential(*(linear(weights // LAYERS) for _ in range(LAYERS))).to(settings.device)
    sparse = weights_in(model)
    optimizer = METHODS[name](model, "2:4")
    x = torch.randn(8, math.isqrt(sparse // LAYERS), device=settings.device)
    for _ in range(ITERATIONS):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = (value for state in optimizer.state.values() for value in state.values())
    return sparse, sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def _child(name: str, settings: Settings) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    command += ["--threads", str(settings.threads), "--device", str(settings.device)]
    if settings.megaweights is not None:
        command += ["--megaweights", str(settings.megaweights)]
    command += ["--quick"] if settings.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


PART = Part(
    name="memory",
    title="Words for each sparse weight over torch's fused AdamW",
    measure=measure,
    unit="words",
)

if __name__ == "__main__":
    if "--child" in sys.argv:
        flags = parser(None)
        flags.add_argument("--child")
        arguments = flags.parse_args()
        print(json.dumps(train(arguments.child, settings_of(arguments))))
    else:
        alone(PART, __doc__)
