"""Distributed checkpoints: resuming a sparse run on another number of ranks.

Training itself needs nothing from here: :func:`nmstep.sparsify` finds torch.distributed, DTensors and DDP.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nmstep.admission import ATTACHED
from nmstep.integrations.attached import unwrapped
from nmstep.integrations.checkpoint_metadata import stored_sizes
from nmstep.shards import reshard
from nmstep.sparsity_plan import unwrap
from nmstep.verify.files import load_pickle

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

    The checkpoint's ``.metadata`` is read without running what may be in it, and refused where it asks for more
    than torch writes there. Values that are no tensors are still unpickled, by ``dcp.load``: load what you trust.

    Raises:
        ValueError: the optimizer has no sparsifier, or the checkpoint was not saved by one, or its ``.metadata`` is
            not as torch writes it, or a file is damaged or holds something else.
        FileNotFoundError: there is no such checkpoint.
        RuntimeError: the sparsifier has taken steps already.
    """
    sparsifier = getattr(unwrapped(optimizer), ATTACHED, None)
    if sparsifier is None:
        raise ValueError(f"this {type(optimizer).__name__} has no sparsifier: call nmstep.sparsify first")
    reshard(model)  # the optimizer holds the shards, not what an evaluation has gathered
    names: dict[Tensor, str] = {p: _plain(name) for name, p in unwrap(model).named_parameters()}

    def read() -> Callable[[Tensor, str], tuple[int, ...] | None]:
        sizes = _sizes(checkpoint)
        return lambda p, key: sizes.get(f"{names[p]}.{key}")

    sparsifier.saved.make_room(read)


def _sizes(checkpoint: Any) -> dict[str, tuple[int, ...]]:
    """Returns the sizes of the optimizer's states in a checkpoint by ``parameter.key``."""
    if isinstance(checkpoint, (str, os.PathLike)) and Path(checkpoint).is_file():
        loaded = load_pickle(Path(checkpoint))
        states = loaded.get("state")
        if not isinstance(states, Mapping) or not all(
            isinstance(state, Mapping) for state in states.values()
        ):
            raise ValueError(
                f"{os.fspath(checkpoint)!r} holds {', '.join(map(repr, list(loaded)[:5]))}, not the 'state' of an "
                f"optimizer: give the file that holds what get_optimizer_state_dict returned, and nothing else"
            )
        return {
            f"{name}.{key}": tuple(value.shape) if isinstance(value, Tensor) else ()
            for name, state in states.items()
            for key, value in state.items()
        }
    return _of_states(stored_sizes(checkpoint))


def _of_states(stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the sizes of optimizer states by ``parameter.key``, under whatever name the optimizer was saved."""
    found: dict[str, tuple[int, ...]] = {}
    for key, size in stored.items():
        pieces = key.split(".")
        for i, piece in enumerate(pieces):
            if piece == "state":  # a module may be called so as well
                found.setdefault(".".join(pieces[i + 1 :]), size)
    return found


def _plain(name: str) -> str:
    """Returns a parameter's name as ``get_state_dict`` spells it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
