"""Accelerate: a recipe attached before ``prepare``, as it has to be, and a folder that says what is in it.

Nothing here imports Accelerate; it takes the user's own ``Accelerator``. Its ``save_state`` and ``load_state``
keep the optimizer's state, and so all that belongs to a recipe.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nmstep.deploy.exporting import is_pretrained
from nmstep.integrations.attached import unwrapped
from nmstep.integrations.marking import mark_folder, plan_in_force
from nmstep.optim.gradients import OnNonfinite
from nmstep.recipes import Recipe
from nmstep.sparsify import Sparsifier, sparsify
from nmstep.trace import TraceOptions
from nmstep.verify import verify

__all__ = ["prepare", "save"]


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
        # It puts other parameters into the optimizer, whose state a recipe that starts at step 0 has used by then.
        prepared = accelerator.prepare(model, optimizer, *others)
        return (sparsify(prepared[0], unwrapped(prepared[1]), recipe, **settings), *prepared)
    sparsifier = sparsify(model, optimizer, recipe, **settings)
    return (sparsifier, *accelerator.prepare(model, optimizer, *others))


def save(accelerator: Any, model: Any, sparsifier: Sparsifier, folder: str | os.PathLike[str]) -> bool:
    """Writes a model's weights and, if they are N:M as planned, ``nm_sparsity`` into the config.json beside them.

    A model of transformers is written by its own ``save_pretrained``, another by ``accelerator.save_model``. All
    processes are to call this; the main one writes.

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
    """
    inner, path = accelerator.unwrap_model(model, keep_torch_compile=False), Path(folder)
    if is_pretrained(inner):
        state = accelerator.get_state_dict(model)
        inner.save_pretrained(path, state_dict=state, is_main_process=accelerator.is_main_process)
    else:
        accelerator.save_model(model, path)
    marked = accelerator.is_main_process and _mark(sparsifier, path)
    accelerator.wait_for_everyone()
    return marked


def _mark(sparsifier: Sparsifier, folder: Path) -> bool:
    if not sparsifier.plan.sparse:
        return False
    if verify(folder, plan=sparsifier.plan).ok:  # also where finalize() came before the schedule's end
        mark_folder(folder, sparsifier.plan)
    elif sparsifier.phase == "sparse":
        mark_folder(folder, plan_in_force(sparsifier))
    else:
        return False
    return True
