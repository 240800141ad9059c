"""What ranks do wrong, one at a time: each function returns what this rank was told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranked
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import nmstep
from nmstep import STEP, AdamW, SwitchAt, sparsify
from nmstep.integrations.distributed import prepare_load
from nmstep.shards import check_shards, local


def told(work: Any) -> str:
    """Returns the error that ``work`` raises, as text; "" where it raises none."""
    try:
        work()
    except BaseException as error:  # torch's CheckpointException is no Exception
        return f"{type(error).__name__}: {error}"
    return ""


def everything(folder: Path) -> dict[str, Any]:
    """Returns what this rank was told in each case."""
    return {case.__name__: case() for case in CASES} | {
        "checkpoints": checkpoints(folder),
        "unprepared": unprepared(folder),
    }


def other_pattern() -> str:
    pattern = "2:4" if dist.get_rank() == 0 else "1:4"
    model = ranked.fsdp(ranked.net())
    return told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE(pattern)))


def other_steps() -> str:
    model = ranked.ddp(ranked.net())
    recipe = STEP("2:4", 100 + dist.get_rank())
    return told(lambda: sparsify(model, AdamW(model.parameters()), recipe))


def other_model() -> str:
    """The plan itself cannot be made on one rank."""
    model = ranked.net() if dist.get_rank() == 0 else nn.Sequential(nn.LayerNorm(4))
    return told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4")))


def split_groups() -> str:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = nn.Sequential(nn.Linear(16, 20), nn.Linear(20, 8))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
    return told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4")))


def uneven_shards() -> bool:
    """Rows that the ranks do not share evenly, even fewer than ranks, are no hindrance."""
    model = fully_shard(nn.Sequential(nn.Linear(16, 1), nn.Linear(8, 3)))
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, nmstep.STE("2:4"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return sparsifier.step == 1 and nmstep.verify(model, "2:4").ok


def writes_counted() -> bool:
    """What the kernels write to a part, torch counts as a write to the whole."""
    model, optimizer, _ = trained()
    before = [p._version for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return all(p._version > old for p, old in zip(model.parameters(), before, strict=True))


def flat_fsdp() -> str:
    model = FullyShardedDataParallel(ranked.net(), device_id=torch.device("cpu"), use_orig_params=True)
    return told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4")))


def trained(**more: Any) -> Any:
    model = ranked.fsdp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, nmstep.STE("2:4"), **more)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return model, optimizer, sparsifier


def poison(model: nn.Module) -> None:
    """Puts a NaN into the gradient that one rank holds."""
    grad = model[2].weight.grad
    if dist.get_rank() == 1:
        local(grad)[0, 0] = torch.nan


def bad_gradient() -> str:
    model, optimizer, _ = trained()
    poison(model)
    return told(optimizer.step)


def skipped_gradient() -> tuple[int, int]:
    model, optimizer, sparsifier = trained(on_nonfinite="skip")
    poison(model)
    optimizer.step()
    return sparsifier.step, sparsifier.skipped_steps


def foreign_write() -> str:
    model, optimizer, _ = trained()
    with torch.no_grad():
        p = model[2].weight
        if dist.get_rank() == 1:
            local(p).fill_(1)
            torch.autograd.graph.increment_version(p)
    return told(optimizer.step)


def seeded_apart() -> str:
    """Masked weights that DDP replaces by those of rank 0, whose pruned parts are not these."""
    torch.manual_seed(dist.get_rank())
    model = nn.Sequential(nn.Linear(16, 8))
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    ranked.ddp(model)(torch.ones(2, 16)).sum().backward()
    return told(optimizer.step)


def cast_apart() -> str:
    """One rank starts from a checkpoint and the other from nothing."""
    model = ranked.ddp(ranked.net())
    optimizer = AdamW(model.parameters())
    recipe = STEP("2:4", switch=SwitchAt(1))
    sparsifier = sparsify(model, optimizer, recipe)
    model(torch.ones(2, 16)).sum().backward()
    if dist.get_rank() == 1:
        inner, other = ranked.net(), None
        other = AdamW(inner.parameters())
        sparsify(inner, other, recipe, process_group=None)
        inner(torch.ones(2, 16)).sum().backward()
        other.step()
        model.module.load_state_dict(inner.state_dict())
        optimizer.load_state_dict(other.state_dict())
        assert sparsifier.step == 1
    return told(optimizer.step)


def replaced() -> bool:
    """As Accelerate does: shards take the place of the parameters that sparsify was given."""
    model = ranked.net()
    optimizer = AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95))
    sparsifier = sparsify(model, optimizer, ranked.step_recipe())
    before = list(model.parameters())
    ranked.fsdp(model)
    after = dict(zip(before, model.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"][:] = [after[p] for p in group["params"]]
    ranked.train(ranked.CASES["fsdp"], model, optimizer, 0, 30)
    return sparsifier.switch_step is not None and nmstep.verify(model, "2:4").ok


def own_model() -> int:
    """With process_group=None each process may do as it likes."""
    model = ranked.net()
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(
        model, optimizer, STEP("2:4", switch=SwitchAt(2 + dist.get_rank())), process_group=None
    )
    for _ in range(5):
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
    return sparsifier.switch_step or 0


def a_sum_to_be() -> str:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
    return told(lambda: check_shards("fc.weight", p, dim=1, m=4))


def wrong_group() -> str:
    model = ranked.net()
    return told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4"), process_group="all"))


def idle() -> tuple[int, int | None]:
    """get_state_dict makes a fresh optimizer step once, which is none."""
    model = ranked.fsdp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, STEP("2:4", switch=SwitchAt(1)))
    get_state_dict(model, optimizer)
    return sparsifier.step, sparsifier.switch_step


def checkpoints(folder: Path) -> dict[str, str]:
    model, optimizer, _ = trained()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "ste")
    found = {"stepped": told(lambda: prepare_load(model, optimizer, folder / "ste"))}
    plain = torch.optim.AdamW(model.parameters())
    found["no sparsifier"] = told(lambda: prepare_load(model, plain, folder / "ste"))
    weights, state = get_state_dict(model, plain)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "dense")

    def fresh(recipe: Any, path: Path) -> tuple[Any, Any]:
        other = ranked.fsdp(ranked.net())
        opt = AdamW(other.parameters())
        sparsify(other, opt, recipe)
        prepare_load(other, opt, path)
        return other, opt

    found["dense"] = told(lambda: fresh(nmstep.STE("2:4"), folder / "dense"))

    def load_other() -> None:
        other, opt = fresh(nmstep.STE("1:4"), folder / "ste")
        weights, state = get_state_dict(other, opt)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / "ste")
        set_state_dict(other, opt, model_state_dict=weights, optim_state_dict=state)

    found["other recipe"] = told(load_other)

    def step_at_once() -> None:
        other, opt = fresh(nmstep.STE("2:4"), folder / "ste")
        for p in other.parameters():
            p.grad = torch.ones_like(p)
        opt.step()

    found["not loaded"] = told(step_at_once)
    return found


def unprepared(folder: Path) -> str:
    """A sparse checkpoint into a fresh optimizer, without the line that makes room for it."""
    model = ranked.fsdp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.STE("2:4"))
    weights, state = get_state_dict(model, optimizer)
    return told(lambda: dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / "ste"))


def a_rank_dies() -> tuple[str, float]:
    """Returns what the others are told, and after how many seconds."""
    case = ranked.CASES["fsdp"]
    made = ranked.make(case)
    ranked.train(case, made[0], made[1], 0, 5)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    return told(lambda: ranked.train(case, made[0], made[1], 5, 50)), time.monotonic() - start


def a_rank_stays_away() -> tuple[str, float]:
    """As above, where one rank lives and never calls sparsify."""
    model = ranked.net()
    start = time.monotonic()
    if dist.get_rank() == 1:
        time.sleep(12)
        return "", 0.0
    error = told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4")))
    return error, time.monotonic() - start


CASES: tuple[Callable[[], Any], ...] = (
    other_pattern,
    other_steps,
    other_model,
    split_groups,
    uneven_shards,
    flat_fsdp,
    bad_gradient,
    skipped_gradient,
    foreign_write,
    seeded_apart,
    cast_apart,
    replaced,
    own_model,
    a_sum_to_be,
    wrong_group,
    idle,
    writes_counted,
)
