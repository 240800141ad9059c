"""What AutoSwitch adds to a step of two ranks, against one all-reduce of a scalar a step.

    python benchmarks/ranks.py [--ranks 2] [--rounds 60] [--warmup 10]

Ranks on this machine talk through gloo. The programs take turns, step by step: torch's AdamW; the same and an
all-reduce of one number that is then read, which is the least that a decision taken together can cost; STEP with
AutoSwitch in its dense phase, each rank for itself; and the ranks together. Five sums are reduced once a step;
under FSDP2 one more number, which tells of a gradient that is not finite.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

import nmstep


def main() -> None:
    """Prints a table and the figures as JSON."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--ranks", type=int, default=2)
    flags.add_argument("--rounds", type=int, default=60)
    flags.add_argument("--warmup", type=int, default=10)
    given = flags.parse_args()
    answers = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (given, f"file://{folder}/meeting", answers)
        spawn(_rank, args=arguments, nprocs=given.ranks)
        figures = answers.get()
    for cut, row in figures.items():
        print(
            f"{cut}: milliseconds of optimizer.step(), lower quartile of {given.rounds}, {given.ranks} ranks"
        )
        for name, value in row.items():
            print(f"  {name:<34} {value:8.3f}")
    print(json.dumps(figures))


def _rank(rank: int, given: argparse.Namespace, meeting: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=given.ranks)
    figures = {cut.__name__.strip("_"): _figures(cut, given) for cut in (_ddp, _fsdp)}
    if rank == 0:
        answers.put(figures)
    dist.destroy_process_group()


def _ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def _fsdp(model: nn.Module) -> nn.Module:
    fully_shard(model)
    return model


def _figures(cut: Callable[[nn.Module], nn.Module], given: argparse.Namespace) -> dict[str, float]:
    programs = {
        "torch's AdamW": _torch(cut, talks=False),
        "  and one scalar reduced and read": _torch(cut, talks=True),
        # Replicas alone can be left to decide alike without a word.
        **({"AutoSwitch, each for itself": _autoswitch(cut, "raise", None)} if cut is _ddp else {}),
        "AutoSwitch, on_nonfinite='ignore'": _autoswitch(cut, "ignore", "world"),
        "AutoSwitch": _autoswitch(cut, "raise", "world"),
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    dist.barrier()
    for turn in range(given.warmup + given.rounds):
        for name, step in programs.items():
            dist.barrier()
            start = time.perf_counter()
            step()
            if turn >= given.warmup:
                taken[name].append(1000 * (time.perf_counter() - start))
    # The quickest quarter: what disturbs a rank disturbs all that wait for it, and never makes it quicker.
    return {name: statistics.quantiles(times, n=4)[0] for name, times in taken.items()}


def _model() -> nn.Module:
    """Returns 4 million weights in 16 tensors."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(720, 720) for _ in range(8)))


def _torch(cut: Callable[[nn.Module], nn.Module], *, talks: bool) -> Callable[[], None]:
    model = cut(_model())
    optimizer = torch.optim.AdamW(model.parameters())
    _give_gradients(model)
    number = torch.zeros(1, dtype=torch.float64)

    def step() -> None:
        optimizer.step()
        if talks:
            dist.all_reduce(number)
            number.item()

    return step


def _autoswitch(
    cut: Callable[[nn.Module], nn.Module], on_nonfinite: Any, process_group: Any
) -> Callable[[], None]:
    model = cut(_model())
    optimizer = nmstep.AdamW(model.parameters())
    recipe = nmstep.STEP("2:4", switch=nmstep.AutoSwitch(threshold=1e-30, clip=None))
    nmstep.sparsify(model, optimizer, recipe, on_nonfinite=on_nonfinite, process_group=process_group)
    _give_gradients(model)

    def step() -> None:
        optimizer.step()

    return step


def _give_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)


if __name__ == "__main__":
    main()
