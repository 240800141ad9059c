"""Training over several ranks, small enough for every test: models cut in each way, one loop for all.

Run by torchrun as a program too: ``ranked.py FOLDER CASE...`` trains each case and writes what came of it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import nmstep
from nmstep import STEP, AdamW, AutoSwitch, Recipe, Sparsifier, TraceOptions, sparsify
from nmstep.shards import is_sharded

STEPS = 50
BATCH = 16


def net() -> nn.Sequential:
    """Returns three Linear layers. The last has 6 rows, which four ranks do not share evenly."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 6))


def step_recipe() -> Recipe:
    """Returns STEP, which switches by the threshold of AutoSwitch in the middle of the run."""
    return STEP("2:4", STEPS, switch=AutoSwitch(window=8, threshold=2.1e-6, clip=(0.1, 0.9)))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 16, generator=generator)
    return x, torch.randn(BATCH, 6, generator=generator)


# -- ways to cut a model: each takes the whole one --------------------------------------------------


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: nn.Module, mesh: Any = None, **policy: Any) -> nn.Module:
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def mixed(model: nn.Module) -> nn.Module:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return fsdp(model, mp_policy=policy)


class InHalf(nn.Sequential):
    """Computes in bfloat16 from weights in fp32, as ``mixed`` does, in one process."""

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: p.bfloat16() for name, p in self.named_parameters()}
        return torch.func.functional_call(nn.Sequential(*self), weights, (x.bfloat16(),))


def offloaded(model: nn.Module) -> nn.Module:
    return fsdp(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def by_columns(model: nn.Module) -> nn.Module:
    """Cuts the first two weights along the dimension that their groups run along."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def where(p: nn.Parameter) -> Shard:
        return Shard(p.dim() - 1) if p.shape[-1] % (4 * dist.get_world_size()) == 0 else Shard(0)

    return fully_shard(model, mesh=mesh, shard_placement_fn=where)


def tensor_parallel(model: nn.Module, mesh: Any = None) -> nn.Module:
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def hybrid(model: nn.Module) -> nn.Module:
    """Cuts each weight over two ranks, and holds it twice."""
    return fsdp(
        model, init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("copies", "parts"))
    )


def two_d(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    return fsdp(tensor_parallel(model, mesh["tp"]), mesh["dp"])


# -- the cases --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way to cut, a recipe and an optimizer; ``data`` ranks share the batch, the others see the same."""

    cut: Callable[[nn.Module], nn.Module] | None = None
    recipe: Callable[[], Recipe] = step_recipe
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: AdamW(p, lr=0.01, betas=(0.9, 0.95))
    micro: int = 1
    data: Callable[[], tuple[int, int]] = lambda: (dist.get_rank(), dist.get_world_size())


def _no_data() -> tuple[int, int]:
    return 0, 1


def _two_d_data() -> tuple[int, int]:
    return dist.get_rank() // 2, dist.get_world_size() // 2


CASES = {
    "ddp": Case(cut=ddp),
    "ddp, accumulated": Case(cut=ddp, micro=2),
    "fsdp": Case(cut=fsdp),
    "fsdp, accumulated": Case(cut=fsdp, micro=2),
    "fsdp, plain torch": Case(
        cut=fsdp, optimizer=lambda p: AdamW(p, lr=0.01, betas=(0.9, 0.95), fused=False)
    ),
    "fsdp, kernels": Case(cut=fsdp, optimizer=lambda p: AdamW(p, lr=0.01, betas=(0.9, 0.95), fused=True)),
    "fsdp, by columns": Case(cut=by_columns),
    "fsdp, bf16": Case(cut=mixed),
    "fsdp, offloaded": Case(cut=offloaded),
    "fsdp, geometric": Case(
        cut=fsdp,
        recipe=lambda: STEP(
            "2:4",
            STEPS,
            switch=AutoSwitch(mean="geometric", window=8, threshold=3.6e-7, clip=(0.5, 0.95)),
        ),
    ),
    "fsdp, sr-ste": Case(cut=fsdp, recipe=lambda: nmstep.SRSTE("2:4", refine=0.01)),
    "fsdp, asp, sgd": Case(
        cut=fsdp,
        recipe=lambda: nmstep.ASP("2:4", start=20),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ),
    "fsdp, ste, torch": Case(
        cut=fsdp,
        recipe=lambda: nmstep.STE("2:4"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    ),
    "tp": Case(cut=tensor_parallel, data=_no_data),
    "hybrid": Case(cut=hybrid),
    "2d": Case(cut=two_d, data=_two_d_data),
}


def make(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Sparsifier]:
    model = net() if case.cut is None else case.cut(net())
    optimizer = case.optimizer(model.parameters())
    trace = TraceOptions(layers_every=7)
    return model, optimizer, sparsify(model, optimizer, case.recipe(), trace=trace)


def train(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Takes the steps from number ``first`` to ``last``, each on one batch that the ranks share."""
    rank, world = case.data() if case.cut is not None else (0, 1)
    for step in range(first, last):
        optimizer.zero_grad()
        parts = [t.chunk(world)[rank].chunk(case.micro) for t in batch(step)]
        for i, (x, y) in enumerate(zip(*parts, strict=True)):
            with _synced(model, i == case.micro - 1):
                ((model(x) - y).square().mean() / case.micro).backward()
        optimizer.step()


@contextlib.contextmanager
def _synced(model: nn.Module, is_last: bool) -> Iterator[None]:
    if isinstance(model, nn.parallel.DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
        return
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(is_last)
    yield


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).detach().clone()


def outcome(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier) -> dict[str, Any]:
    """Returns what a run came to, put together from all ranks."""
    named = {name.removeprefix("module."): p for name, p in model.named_parameters()}
    masks = {entry.name: whole(named[entry.name]) != 0 for entry in sparsifier.plan.sparse}
    pruned = {
        name: whole(optimizer.state[p]["pruned"])
        for name, p in named.items()
        if "pruned" in optimizer.state[p]
    }
    rows = sparsifier.trace.rows()
    return {
        "parameters": {name: whole(p) for name, p in named.items()},
        "pruned": pruned,
        "masks": masks,
        "switch": (sparsifier.switch_step, sparsifier.switch_reason),
        "z": [row["z"] for row in rows if row["z"] is not None],
        "norms": [row[key] for row in rows for key in ("v_norm1", "v_norm2") if row[key] is not None],
        "d": sparsifier.trace.d,
        "layers": sparsifier.trace.layers,
        "verified": nmstep.verify(model, "2:4").ok,
        "masks are of the latent weights": all(
            torch.equal(whole(named[name]), (w := whole(named[name]) + cut) * nmstep.nm_mask(w, "2:4"))
            for name, cut in pruned.items()
        ),
    }


def run(name: str) -> dict[str, Any]:
    case = CASES[name]
    made = make(case)
    train(case, made[0], made[1], 0, STEPS)
    found = outcome(*made)
    decided: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(decided, (made[2].switch_step, made[2].trace.rows()[-1]["z_mean"], found["z"]))
    return {**found, "the same on all ranks": all(str(d) == str(decided[0]) for d in decided)}


def run_all(names: list[str]) -> dict[str, Any]:
    """Returns what came of each case."""
    return {name: run(name) for name in names}


if __name__ == "__main__":
    # Under torchrun: ranked.py FILE CASE...
    dist.init_process_group("gloo")
    came = run_all(sys.argv[2:])
    if dist.get_rank() == 0:
        torch.save(came, sys.argv[1])
    dist.destroy_process_group()
