"""The final weights as a safetensors file that says which of them are N:M."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from torch import Tensor, nn

from nmstep.experiments.files import write_atomically
from nmstep.plan import SparsityPlan

__all__ = ["save_weights"]


def save_weights(model: nn.Module, path: Path, *, plan: SparsityPlan | None) -> None:
    """Writes a model's state dict atomically, with the plan in the header under ``"nm_sparsity"``.

    A tensor that has several names is written once, under its first; the header maps the others to it, as
    ``safetensors.torch.load_model`` expects.

    Args:
        model: finalized.
        path: ends in ``.safetensors``.
        plan: of the model; None for a dense one.

    Raises:
        OSError: as :func:`~nmstep.experiments.files.write_atomically`.
    """
    from safetensors.torch import save

    first: dict[tuple[int, tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in first:
            metadata[name] = first[key]
            continue
        first[key] = name
        tensors[name] = tensor.contiguous()
    if plan is not None:
        metadata["nm_sparsity"] = json.dumps(plan.to_dict())
    write_atomically(path, _reproducible(save(tensors, metadata)))


def _reproducible(data: bytes) -> bytes:
    """Returns a safetensors file with sorted metadata: the library writes it in another order each time."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
