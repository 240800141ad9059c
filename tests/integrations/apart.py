"""What one rank alone runs into, or is told otherwise than the others; beside ``refused``, which is full."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranked
import refused
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from refused import told
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import nmstep
from nmstep import STEP, AdamW, AutoSwitch, SwitchAt, TraceOptions, sparsify
from nmstep.integrations.distributed import prepare_load
from nmstep.kernels import masks as kernels
from nmstep.shards import local


def everything() -> dict[str, Any]:
    """Returns what this rank was told in each case."""
    return {case.__name__: case() for case in CASES}


def is_other() -> bool:
    return dist.get_rank() == 1


def other_rate() -> str:
    model = ranked.ddp(ranked.net())
    optimizer = AdamW(model.parameters(), lr=0.02 if is_other() else 0.01)
    return told(lambda: sparsify(model, optimizer, nmstep.SRSTE("2:4")))


def other_settings() -> str:
    """Three numbers and a flag at once, of an optimizer of torch's, one of them as a tensor."""
    model = ranked.ddp(ranked.net())
    own = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True} if is_other() else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), **own)
    return told(lambda: sparsify(model, optimizer, nmstep.SRSTE("2:4")))


def other_groups() -> str:
    model = ranked.ddp(ranked.net())
    *first, last = model.parameters()
    groups = [{"params": first}, {"params": [last]}] if is_other() else [{"params": [*first, last]}]
    return told(lambda: sparsify(model, AdamW(groups), nmstep.SRSTE("2:4")))


def rate_set_later() -> str:
    """A scheduler that is made after sparsify, on one rank."""
    model = ranked.ddp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    if is_other():
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    model(torch.ones(2, 16)).sum().backward()
    return told(optimizer.step)


def no_group() -> str:
    model = ranked.fsdp(ranked.net())
    return told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4"), process_group=None))


def small_group() -> str:
    """Each rank gives a group of itself for a model that both hold."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    model = ranked.fsdp(ranked.net())
    group = groups[dist.get_rank()]
    return told(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4"), process_group=group))


def cut_later() -> str:
    """As no_group, where the model is cut only after sparsify."""
    model = ranked.net()
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, STEP("2:4", switch=SwitchAt(9)), process_group=None)
    before = list(model.parameters())
    ranked.fsdp(model)
    after = dict(zip(before, model.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"][:] = [after[p] for p in group["params"]]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return told(optimizer.step)


def mesh_of_one() -> int:
    """A model that is cut over this rank alone belongs to this rank alone."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("each", "own"))["own"]
    model = nn.Sequential(nn.Linear(16, 8))
    fully_shard(model, mesh=mesh)
    sparsifier = sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4"), process_group=None)
    return len(sparsifier.plan.sparse)


def fails_here(work: Callable[[], Any]) -> str:
    """Returns what is told where the second weight's pruned part finds no room on one rank."""
    whole = torch.empty_like
    calls = iter(range(100))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 1:
            raise MemoryError("no room")
        return whole(*args, **kwargs)

    if is_other():
        kernels.torch.empty_like = failing  # type: ignore[attr-defined]
    try:
        return told(work)
    finally:
        kernels.torch.empty_like = whole  # type: ignore[attr-defined]


def no_room_at_once() -> tuple[str, bool]:
    model = ranked.ddp(ranked.net())
    before = [p.detach().clone() for p in model.parameters()]
    error = fails_here(lambda: sparsify(model, AdamW(model.parameters()), nmstep.SRSTE("2:4")))
    return error, all(map(torch.equal, model.parameters(), before))


def no_room_at_the_switch() -> tuple[str, bool]:
    model = ranked.fsdp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, STEP("2:4", switch=SwitchAt(1)))
    get_state_dict(model, optimizer)  # makes the optimizer's own state, which is not what is to fail
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    error = fails_here(optimizer.step)
    dense = not any("pruned" in state for state in optimizer.state.values())
    return error, dense and sparsifier.phase == "dense" and not nmstep.verify(model, "2:4").ok


def bad_state() -> str:
    """One rank has loaded a state that cannot be gone on from."""
    model = ranked.ddp(ranked.net())
    optimizer = AdamW(model.parameters())
    if is_other():
        optimizer.state[model.module[0].weight]["pruned"] = torch.zeros(32, 16)
    return told(lambda: sparsify(model, optimizer, nmstep.SRSTE("2:4")))


def state_on_one_rank() -> str:
    """One rank goes on from a state, the other begins."""
    recipe = STEP("2:4", switch=SwitchAt(5))
    model = ranked.net()
    optimizer = AdamW(model.parameters())
    if is_other():
        sparsify(model, optimizer, recipe, process_group=None)
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
        saved = optimizer.state_dict()
        optimizer = AdamW(model.parameters())
        optimizer.load_state_dict(saved)
    return told(lambda: sparsify(ranked.ddp(model), optimizer, recipe))


def checkpoint_unseen() -> tuple[str, bool]:
    """A folder that one rank cannot see, as where it is on another machine's disk."""
    model = ranked.fsdp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, STEP("2:4", switch=SwitchAt(5)))
    with tempfile.TemporaryDirectory() as folder:
        path = [Path(folder)]
        dist.broadcast_object_list(path, 0)
        twin = ranked.fsdp(ranked.net())
        other = AdamW(twin.parameters())
        sparsify(twin, other, STEP("2:4", switch=SwitchAt(5)))
        weights, state = get_state_dict(twin, other)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path[0] / "saved")
        place = path[0] / ("elsewhere" if is_other() else "saved")
        error = told(lambda: prepare_load(model, optimizer, place))
        dist.barrier()
    return error.replace(str(path[0]), ""), not optimizer.state


def nonfinite_ignored() -> tuple[int, int, int | None, bool]:
    """Nothing is looked at, and nothing skipped: all ranks count the step, and switch at the same one."""
    model = ranked.fsdp(ranked.net())
    optimizer = AdamW(model.parameters())
    switch = AutoSwitch(window=2, clip=(0.5, 0.75))
    sparsifier = sparsify(model, optimizer, STEP("2:4", 8, switch=switch), on_nonfinite="ignore")
    for step in range(8):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if step == 1:
            refused.poison(model)
        optimizer.step()
    broken = bool(local(model[2].weight.detach()).isnan().any())
    return sparsifier.step, sparsifier.skipped_steps, sparsifier.switch_step, broken


def left_out_by_a_scaler() -> list[tuple[int, bool]]:
    """A loss scaler that leaves skipping to the optimizer found an infinity in one rank's part alone."""
    found = []
    for mode in ("raise", "skip", "ignore"):
        model, optimizer, sparsifier = refused.trained(on_nonfinite=mode)
        before = [local(p).detach().clone() for p in model.parameters()]
        optimizer.found_inf = torch.tensor(float(is_other()))
        optimizer.step()
        optimizer.found_inf = torch.tensor(0.0)
        same = all(map(torch.equal, map(local, model.parameters()), before))
        optimizer.step()
        found.append((sparsifier.step, same))
    return found


def written_before_a_sample() -> str:
    """Under DDP, before a step whose statistics are reduced, all ranks are told."""
    model = ranked.ddp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.STE("2:4"), trace=TraceOptions(layers_every=3))
    for _ in range(2):
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
    model(torch.ones(2, 16)).sum().backward()
    if is_other():
        with torch.no_grad():
            model.module[2].weight.fill_(1)
    return told(optimizer.step)


def written_between() -> tuple[str, float]:
    """Under DDP, before any other step: the rank is told and ends, the other ends in its next exchange."""
    model = ranked.ddp(ranked.net())
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.STE("2:4"))
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    if is_other():
        with torch.no_grad():
            model.module[2].weight.fill_(1)
    start = time.monotonic()

    def go_on() -> None:
        for _ in range(5):
            model(torch.ones(2, 16)).sum().backward()
            optimizer.step()

    if is_other():
        go_on()  # its error ends the process
    return told(go_on), time.monotonic() - start


def zero_redundancy() -> str:
    """Its own state dict has no place for what masks cut away."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch's module compiles something in a way that torch advises against
        from torch.distributed.optim import ZeroRedundancyOptimizer

    model = ranked.ddp(ranked.net())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam)
    return told(lambda: sparsify(model, optimizer, nmstep.SRSTE("2:4")))


CASES: tuple[Callable[[], Any], ...] = (
    other_rate,
    other_settings,
    other_groups,
    rate_set_later,
    no_group,
    small_group,
    cut_later,
    mesh_of_one,
    no_room_at_once,
    no_room_at_the_switch,
    bad_state,
    state_on_one_rank,
    checkpoint_unseen,
    nonfinite_ignored,
    left_out_by_a_scaler,
    written_before_a_sample,
    zero_redundancy,
)
