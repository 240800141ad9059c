"""Distributed checkpoints: resuming a sparse run on another number of ranks.

Training itself needs nothing from here: :func:`nmstep.sparsify` finds torch.distributed, DTensors and DDP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmstep.admission import ATTACHED
from nmstep.integrations.attached import unwrapped
from nmstep.sparsity_plan import unwrap

__all__ = ["prepare_load"]

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def prepare_load(model: nn.Module, optimizer: Optimizer, checkpoint: str | os.PathLike[str] | Any) -> None:
    """Makes room in a sparsified optimizer's state for what a distributed checkpoint holds.

    torch.distributed.checkpoint loads into a state dict that is there already, and leaves out what it has no place
    for. A fresh optimizer has no pruned parts yet, so this is called first; then as always::

        prepare_load(model, optimizer, path)
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)

    All ranks call it. The number of ranks, and how the model is cut, may be others than when it was saved.

    Args:
        model: the model, cut as it is to train.
        optimizer: its optimizer, after :func:`nmstep.sparsify` with the recipe that it was saved with.
        checkpoint: the checkpoint's folder, or a ``StorageReader`` of torch.distributed.checkpoint; or a file with
            the optimizer's whole state by names, such as Accelerate's ``optimizer.bin``.

    Raises:
        ValueError: the optimizer has no sparsifier, or the checkpoint was not saved by one.
        FileNotFoundError: there is no such checkpoint.
        RuntimeError: the sparsifier has taken steps already.
    """
    sparsifier = getattr(unwrapped(optimizer), ATTACHED, None)
    if sparsifier is None:
        raise ValueError(f"this {type(optimizer).__name__} has no sparsifier: call nmstep.sparsify first")
    names: dict[Tensor, str] = {p: _plain(name) for name, p in unwrap(model).named_parameters()}
    sizes = {key: _size(value) for key, value in _metadata(checkpoint).items()}

    def stored(p: Tensor, key: str) -> tuple[int, ...] | None:
        ending = f"state.{names[p]}.{key}"
        return next((size for k, size in sizes.items() if k == ending or k.endswith("." + ending)), None)

    sparsifier.saved.make_room(stored)


def _metadata(checkpoint: Any) -> Mapping[str, Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    is_path = isinstance(checkpoint, (str, os.PathLike))
    if is_path and Path(checkpoint).is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state"]
        return {f"state.{name}.{key}": value for name, own in state.items() for key, value in own.items()}
    reader = FileSystemReader(checkpoint) if is_path else checkpoint
    found: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    return found


def _size(stored: Any) -> tuple[int, ...]:
    if isinstance(stored, Tensor):
        return tuple(stored.shape)
    return tuple(getattr(stored, "size", ()))  # of a tensor; anything else is stored as bytes


def _plain(name: str) -> str:
    """Returns a parameter's name as ``get_state_dict`` spells it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
