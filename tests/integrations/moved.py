"""A run in stretches, each on another number of ranks, from one distributed checkpoint to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ranked
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from nmstep.integrations.distributed import prepare_load

CUTS = {
    1: ranked.CASES["fsdp"],
    2: ranked.CASES["fsdp"],
    4: ranked.CASES["2d"],
}
FORMS = {"nested": StateDictOptions(), "flat": StateDictOptions(flatten_optimizer_state_dict=True)}


def load(folder: Path, form: str, model: nn.Module, optimizer: Any) -> None:
    prepare_load(model, optimizer, folder)
    weights, state = get_state_dict(model, optimizer, options=FORMS[form])
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=FORMS[form])


def save(folder: Path, form: str, model: nn.Module, optimizer: Any, *, later: bool) -> Any:
    weights, state = get_state_dict(model, optimizer, options=FORMS[form])
    values = {"model": weights, "optimizer": state}
    if not later:
        return dcp.save(values, checkpoint_id=folder)
    # A group of its own: training goes on talking while the checkpoint is written.
    return dcp.async_save(values, checkpoint_id=folder, process_group=dist.new_group())


def stretch(folder: Path, first: int, last: int) -> None:
    """Goes on from step ``first`` to ``last`` in every form of checkpoint; the flat one is saved asynchronously."""
    for form in FORMS:
        _stretch(folder, form, first, last)


def _stretch(folder: Path, form: str, first: int, last: int) -> None:
    case = CUTS[dist.get_world_size()]
    made = ranked.make(case)
    if first:
        load(folder / f"{form} {first}", form, made[0], made[1])
        assert made[2].step == first
    ranked.train(case, made[0], made[1], first, last)
    found = ranked.outcome(*made)
    saving = save(folder / f"{form} {last}", form, made[0], made[1], later=form == "flat")
    if form == "flat":
        ranked.train(case, made[0], made[1], last, last + 2)  # while the checkpoint is being written
        saving.result()
    if dist.get_rank() == 0:
        torch.save(found, folder / f"{form} {last}.pt")
