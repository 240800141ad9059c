"""Accelerate: a recipe attached before ``prepare``, as it has to be, and a folder that says what is in it.

Nothing here imports Accelerate; it takes the user's own ``Accelerator``. Its ``save_state`` and ``load_state``
keep the optimizer's state, and so all that belongs to a recipe; under FSDP2 it needs :func:`load_state` to load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nmstep.admission import check_arguments
from nmstep.deploy.exporting import is_pretrained
from nmstep.deploy.writing import without_aliases, write_tensors
from nmstep.integrations.attached import check_sparsifier, unwrapped
from nmstep.integrations.distributed import prepare_load
from nmstep.integrations.marking import (
    mark_config,
    mark_folder,
    on_all_ranks,
    plan_in_force,
    unmark_folder,
)
from nmstep.optim.gradients import OnNonfinite
from nmstep.recipes import Recipe
from nmstep.shards import is_sharded
from nmstep.sparsify import Sparsifier, sparsify
from nmstep.sparsity_plan import SparsityPlan
from nmstep.trace import TraceOptions
from nmstep.verify import verify

__all__ = ["load_state", "prepare", "save"]


def prepare(
    accelerator: Any,
    model: nn.Module,
    optimizer: Optimizer,
    *others: Any,
    recipe: Recipe,
    on_nonfinite: OnNonfinite = "raise",
    trace: TraceOptions | None = None,
) -> tuple[Any, ...]:
    """Returns a sparsifier, and what ``accelerator.prepare(model, optimizer, *others)`` returns.

    Args:
        accelerator: of Accelerate.
        model: on which device does not matter yet.
        optimizer: a torch optimizer that holds its parameters, not prepared yet.
        others: data loaders, schedulers, as ``prepare`` takes them.
        recipe: as for :func:`nmstep.sparsify`.
        on_nonfinite: likewise.
        trace: likewise.

    Raises:
        TypeError: ``optimizer`` is prepared already.
        ValueError: as :func:`nmstep.sparsify`.
    """
    settings: dict[str, Any] = {"on_nonfinite": on_nonfinite, "trace": trace}
    if getattr(accelerator, "is_fsdp2", False):
        check_arguments(model, optimizer, recipe, on_nonfinite)
        # It puts other parameters into the optimizer, whose state a recipe that starts at step 0 has used by then.
        prepared = accelerator.prepare(model, optimizer, *others)
        return (sparsify(prepared[0], unwrapped(prepared[1]), recipe, **settings), *prepared)
    sparsifier = sparsify(model, optimizer, recipe, **settings)
    return (sparsifier, *accelerator.prepare(model, optimizer, *others))


def load_state(
    accelerator: Any, model: nn.Module, optimizer: Any, folder: str | os.PathLike[str], **settings: Any
) -> None:
    """Loads what ``accelerator.save_state`` wrote, under FSDP2 too, where it loads only what has a place already.

    Args:
        accelerator: of Accelerate.
        model: as :func:`prepare` returned it.
        optimizer: likewise; no step has been taken.
        folder: what ``save_state`` returned.
        settings: of ``accelerator.load_state``.

    Raises:
        ValueError: the optimizer has no sparsifier, or the folder was not saved with one.
        FileNotFoundError: there is no such folder.
    """
    if getattr(accelerator, "is_fsdp2", False):
        parts = Path(folder) / "optimizer_0"
        prepare_load(model, optimizer, parts if parts.is_dir() else Path(folder) / "optimizer.bin")
    accelerator.load_state(os.fspath(folder), **settings)


def save(accelerator: Any, model: Any, sparsifier: Sparsifier, folder: str | os.PathLike[str]) -> bool:
    """Writes a model's weights and, if they are N:M as planned, ``nm_sparsity`` into the config.json beside them.

    A model of transformers is written by its own ``save_pretrained``, another into ``model.safetensors``. All
    processes are to call this; the main one writes. Shards are put together first.

    Args:
        accelerator: of Accelerate.
        model: prepared or not.
        sparsifier: of its optimizer; after ``finalize`` too.
        folder: is made; files in it are replaced.

    Returns:
        Whether each planned weight in the files has its pattern; False before the masks start and on other
        processes.

    Raises:
        NotSparseError: masks have started and a planned weight is not N:M. The files stay, without the entry.
        OSError: the folder cannot be written to.
        TypeError: ``sparsifier`` is something else.

    What one process raises, all of them do, with the same message.
    """
    check_sparsifier(sparsifier, needed_by="save")
    inner, path = accelerator.unwrap_model(model, keep_torch_compile=False), Path(folder)
    is_main, state = bool(accelerator.is_main_process), _whole(accelerator.get_state_dict(model))
    plan: SparsityPlan | None = None

    def write() -> None:
        nonlocal plan
        _write(inner, state, path, is_main=is_main)
        plan = _marked(sparsifier, path) if is_main else None

    # By itself: the writers only log that there is a file of this name.
    on_all_ranks(sparsifier, lambda: path.mkdir(parents=True, exist_ok=True) if is_main else None)
    on_all_ranks(sparsifier, write)
    mark_config(inner, plan)
    return plan is not None


def _whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dict with its shards put together: Accelerate does so only where it cut the model itself."""
    return {name: t.full_tensor().cpu() if is_sharded(t) else t for name, t in state.items()}


def _write(model: nn.Module, state: dict[str, Any], folder: Path, *, is_main: bool) -> None:
    if is_pretrained(model):
        mark_config(model, None)  # of an earlier run
        model.save_pretrained(folder, state_dict=state, is_main_process=is_main)  # type: ignore[operator]
    elif is_main:
        tensors, aliases = without_aliases(state)
        write_tensors(tensors, folder / "model.safetensors", {"format": "pt", **aliases})
    if is_main:
        unmark_folder(folder)


def _marked(sparsifier: Sparsifier, folder: Path) -> SparsityPlan | None:
    """Returns what a folder complies with, once it says so; None for nothing."""
    plan = sparsifier.plan
    if not plan.sparse:
        return None
    if not verify(folder, plan=plan).ok:  # which it does too where finalize() came before the schedule's end
        if sparsifier.phase == "dense":
            return None
        plan = plan_in_force(sparsifier)
    mark_folder(folder, plan)
    return plan
