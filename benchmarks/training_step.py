"""One optimizer step against torch's fused AdamW: dense, and sparse at every pattern, in turn, in one run.

    python benchmarks/training_step.py [--rounds 15] [--threads 2] [--megaweights 16] [--json FILE]

Each row is the median, over rounds, of the ratio of two times taken one after the other, and its spread without
the two extremes. The opponents are torch.optim.AdamW as fused, foreach and for-loop; the mask as the published
SR-STE code finds it (argsort and scatter in every forward pass); and copying the tensor, for the mask alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import nmstep
from nmstep import NMPattern, kernels

PATTERNS = ("2:4", "1:4", "1:8", "1:16", "1:32")
Step = Callable[[], object]


def torch_step(weight: Tensor, grad: Tensor, **kind: bool) -> Step:
    p = nn.Parameter(weight.clone())
    p.grad = grad
    return torch.optim.AdamW([p], **kind).step


def sparse_step(weight: Tensor, grad: Tensor, pattern: str, *, dim: int = 1, frozen: bool = True) -> Step:
    """The parameter's whole step in one pass, as AdamW takes it."""
    p = weight.clone()
    cut = kernels.Cut(pruned=kernels.split_(p, pattern, dim=dim), pattern=NMPattern.parse(pattern), dim=dim)
    m, v = torch.zeros_like(p), torch.rand_like(p)
    group = torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).param_groups[0]
    group |= {"eps_root": 0.0, "decoupled_weight_decay": True}
    floor = 1e-8 if frozen else None
    return lambda: kernels.adam_step_(group, p, grad, m, v, step=10, frozen_eps_root=floor, cut=cut)


def dense_step(weight: Tensor, grad: Tensor) -> Step:
    """AdamW's dense step with all that AutoSwitch reads."""
    p = nn.Parameter(weight.clone())
    p.grad = grad
    optimizer = nmstep.AdamW([p], fused=True)
    optimizer.step()
    state = optimizer.state[p]
    group = optimizer.param_groups[0]
    return lambda: kernels.adam_step_(
        group, p, grad, state["exp_avg"], state["exp_avg_sq"], step=10, sums=True
    )


def published_mask(weight: Tensor, pattern: str) -> Step:
    n, m = (int(part) for part in pattern.split(":"))

    def mask() -> Tensor:
        groups = weight.abs().reshape(-1, m)
        order = groups.argsort(dim=1)[:, : m - n]
        return torch.ones_like(groups).scatter_(1, order, 0).reshape(weight.shape)

    return mask


def timed(step: Step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def compare(name: str, ours: Step, theirs: Step, rounds: int, bar: float | None = None) -> dict[str, object]:
    for step in (ours, theirs):
        step()
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    row = {
        "ratio": statistics.median(ratios),
        "low": ratios[1],
        "high": ratios[-2],
        "ms": 1000 * statistics.median(a for a, _ in pairs),
        "other_ms": 1000 * statistics.median(b for _, b in pairs),
        "bar": bar,
    }
    wanted = "" if bar is None else f"bar {bar:.2f}  {'reached' if row['ratio'] <= bar else 'NOT reached'}"
    print(
        f"{name:44s} {row['ratio']:6.2f}  [{row['low']:.2f} … {row['high']:.2f}]  {row['ms']:8.2f} ms  {wanted}"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--megaweights", type=float, default=16.8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    side = int((arguments.megaweights * 1e6) ** 0.5) // 64 * 64
    torch.manual_seed(0)
    weight, grad = torch.randn(side, side), torch.randn(side, side)
    status = kernels.status()
    print(
        f"{side} x {side} fp32 weights, {arguments.threads} threads, torch {torch.__version__}, {status.active}"
    )
    fused = torch_step(weight, grad, fused=True)
    rows = {}

    def measure(name: str, ours: Step, theirs: Step, bar: float | None = None) -> None:
        rows[name] = compare(name, ours, theirs, arguments.rounds, bar)

    measure("torch foreach / fused", torch_step(weight, grad, foreach=True), fused)
    measure("torch for-loop / fused", torch_step(weight, grad, foreach=False), fused)
    measure("dense step with AutoSwitch / fused", dense_step(weight, grad), fused, 1.05)
    for pattern in PATTERNS:
        measure(f"frozen sparse step {pattern} / fused", sparse_step(weight, grad, pattern), fused, 1.15)
    measure("updated sparse step 2:4 / fused", sparse_step(weight, grad, "2:4", frozen=False), fused, 1.15)
    measure("frozen, groups down (Conv1D) 2:4 / fused", sparse_step(weight, grad, "2:4", dim=0), fused, 1.15)
    copy = torch.empty_like(weight)
    for pattern in PATTERNS:
        ours = lambda pattern=pattern: kernels.nm_mask(weight, pattern)  # noqa: E731
        measure(f"mask {pattern} / copying the tensor", ours, lambda: copy.copy_(weight), 2.0)
        measure(f"mask {pattern} / argsort and scatter", ours, published_mask(weight, pattern))
    if arguments.json:
        record = {
            "torch": torch.__version__,
            "kernels": status.active,
            "threads": arguments.threads,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
