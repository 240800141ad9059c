"""The final weights as a safetensors file that says which of them are N:M."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from torch import nn

from nmstep.deploy.writing import without_aliases
from nmstep.files import write_atomically
from nmstep.packages import require
from nmstep.plan import SparsityPlan
from nmstep.verify.files import check_recorded

__all__ = ["load_weights", "save_weights"]

_USE = "the weights of runs"


def save_weights(model: nn.Module, path: Path, *, plan: SparsityPlan | None) -> None:
    """Writes a model's state dict atomically, with the plan in the header under ``"nm_sparsity"``.

    A tensor that has several names is written once, under its first; the header maps the others to it, as
    ``safetensors.torch.load_model`` expects.

    Args:
        model: finalized.
        path: ends in ``.safetensors``.
        plan: of the model; None for a dense one.

    Raises:
        OSError: as :func:`~nmstep.files.write_atomically`.
    """
    tensors, aliases = without_aliases(model.state_dict())
    metadata = {"format": "pt", **aliases}
    if plan is not None:
        metadata["nm_sparsity"] = json.dumps(plan.to_dict())
    write_atomically(path, _reproducible(require("safetensors.torch", _USE).save(tensors, metadata)))


def load_weights(model: nn.Module, path: Path) -> None:
    """Gives a model the weights of a run, or of any safetensors file with the same names and shapes.

    Args:
        model: on the CPU; changed in place.
        path: a run folder, or a file that ends in ``.safetensors``.

    Raises:
        FileNotFoundError: there is no such file, or the run is not finished.
        ValueError: it is damaged, or is of another model; nothing was changed then.
    """
    safetensors = require("safetensors", _USE)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"there are no weights to start from at {str(file)!r}: give a finished run")
    check_recorded(file)
    try:
        with safetensors.safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            aliases = stored.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{str(file)!r} is no safetensors file: {error}") from error
    own = model.state_dict()
    tensors |= {name: tensors[first] for name, first in aliases.items() if name in own and first in tensors}
    differing = [f"{name} is missing" for name in own if name not in tensors]
    differing += [f"{name} is not in the model" for name in tensors if name not in own]
    differing += [
        f"{name} has shape {tuple(tensors[name].shape)} there, {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if differing:
        more = f" and {len(differing) - 3} more differences" if len(differing) > 3 else ""
        raise ValueError(
            f"the weights in {str(file)!r} are of another model: {'; '.join(differing[:3])}{more}. Check the "
            f"task's options: they must be those of the run that wrote them"
        )
    model.load_state_dict(tensors)


def _reproducible(data: bytes) -> bytes:
    """Returns a safetensors file with sorted metadata: the library writes it in another order each time."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
