"""Exports of dense weights: safetensors with the zeros in them, and a config.json that says which are N:M."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmstep.deploy.dense_tensors import DenseTensors, dense_tensors
from nmstep.deploy.finding import verified_plan
from nmstep.deploy.packing import packed_layers, unpack
from nmstep.deploy.writing import without_aliases, write_tensors
from nmstep.files import new_folder, read_json, write_json
from nmstep.packages import require
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import PlanEntry, SparsityPlan, unwrap
from nmstep.verify import VerifyReport, verify
from nmstep.verify.files import open_path
from nmstep.verify.stored import NM_SPARSITY

__all__ = ["Exported", "dense_model", "export_dense", "is_pretrained"]


@dataclass(frozen=True)
class Exported:
    """What was written and read back.

    Args:
        path: the folder or file that was named.
        size: bytes of all tensors; of an ONNX export, of its files.
        plan: which weights are N:M, by their names in the export.
        report: what :func:`nmstep.verify` found there.
    """

    path: Path
    size: int
    plan: SparsityPlan
    report: VerifyReport


@torch.no_grad()
def export_dense(
    source: nn.Module | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    pattern: str | NMPattern | None = None,
    plan: SparsityPlan | None = None,
    config: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes a folder with the dense weights of an N:M model, zeros included, and reads it back.

    The folder holds ``model.safetensors`` and ``config.json``; under ``"nm_sparsity"`` the latter has the plan
    that :func:`nmstep.verify` goes by. A model of transformers is written by its own ``save_pretrained``, so that
    ``from_pretrained`` reads it, which keeps the entry. What was written is compared with the source, bit for bit.

    Args:
        source: a model, packed or not, or the path of a finished checkpoint that has a plan or is packed. Of a
            packed file, only packed weights are in the plan.
        folder: new, or empty.
        pattern: N kept of M. For a model without pattern and plan, its zeros show what each layer has; a path says
            so itself.
        plan: a pattern for each layer.
        config: more entries for ``config.json``.

    Raises:
        NotSparseError: a weight is not N:M; the message names its first group that is not. Nothing is written.
        FileExistsError: the folder is not empty.
        FileNotFoundError: there is no such source.
        OSError: the folder cannot be written; nothing stays of it.
        ValueError: no weight is sparse, a source cannot be read, or what was written reads differently.
        TypeError: the source is neither a module nor a path.
        ImportError: safetensors is not installed.

    Example:
        >>> import tempfile, nmstep
        >>> model = nn.Linear(8, 4)
        >>> with torch.no_grad():
        ...     _ = model.weight.mul_(nmstep.nm_mask(model.weight, "2:4"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_dense(model, folder, pattern="2:4").report.ok, nmstep.verify(folder).ok
        (True, True)
    """
    require("safetensors.torch", "exports")
    if isinstance(source, nn.Module):
        model, plan = dense_model(source, pattern, plan)
        if is_pretrained(model):
            return _export_pretrained(model, plan, Path(folder), dict(config or {}))
        tensors, aliases = without_aliases(model.state_dict())
        dense = DenseTensors(tensors, plan, aliases)
    elif isinstance(source, (str, os.PathLike)):
        dense = dense_tensors(Path(source), pattern, plan)
        tensors, aliases = without_aliases(dense.tensors)
        dense = DenseTensors(tensors, dense.plan, dense.aliases | aliases, dense.config)
    else:
        raise TypeError(f"export_dense takes a module or a path, got a {type(source).__name__}")
    with new_folder(Path(folder)) as out:
        write_tensors(dense.tensors, out / "model.safetensors", {"format": "pt", **dense.aliases})
        write_json(out / "config.json", {**dense.config, **(config or {}), NM_SPARSITY: dense.plan.to_dict()})
        report, size = _check(out, dense.tensors)
    return Exported(Path(folder), size, dense.plan, replace(report, target=str(folder)))


def dense_model(
    model: nn.Module, pattern: str | NMPattern | None, plan: SparsityPlan | None
) -> tuple[nn.Module, SparsityPlan]:
    """Returns a model with what is packed unpacked, and a plan that it complies with.

    Raises:
        NotSparseError: a layer is not N:M; the message names its first group that is not.
        ValueError: no layer is sparse.
    """
    model = unwrap(model)
    packed = {f"{name}.weight" if name else "weight": layer for name, layer in packed_layers(model).items()}
    if not packed:
        return model, verified_plan(model, pattern, plan=plan)
    model = unpack(model)
    plan_ = verified_plan(model, pattern, plan=plan)
    if pattern is None and plan is None:  # what was packed says its pattern itself
        plan_ = SparsityPlan(tuple(_as_packed(entry, packed) for entry in plan_.entries))
    return model, plan_


def _as_packed(entry: PlanEntry, packed: Mapping[str, Any]) -> PlanEntry:
    for name in (entry.name, *entry.aliases):
        if name in packed:
            return replace(entry, pattern=packed[name].pattern, dim=packed[name].dim, reason="was packed")
    return entry


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers, told without its package."""
    return hasattr(model, "save_pretrained") and hasattr(getattr(model, "config", None), "to_dict")


def _export_pretrained(
    model: nn.Module, plan: SparsityPlan, folder: Path, config: dict[str, Any]
) -> Exported:
    state = model.state_dict()
    with new_folder(folder) as out:
        model.save_pretrained(out)  # type: ignore[operator]
        # Not in the model's own configuration, which stays as it is; from_pretrained keeps unknown entries.
        values = {**read_json(out / "config.json"), **config, NM_SPARSITY: plan.to_dict()}
        write_json(out / "config.json", values)
        report, size = _check(out, state)
    return Exported(folder, size, plan, replace(report, target=str(folder)))


def _check(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[VerifyReport, int]:
    """Returns what verification finds in a folder and the bytes of its weights, once they are those of the source.

    That planned weights are there is part of verification.
    """
    report = verify(folder)
    report.raise_if_failed()
    stored, size = open_path(folder), 0
    places = {_place(tensors[name]) for name in stored.tensors if name in tensors}
    missing = [name for name, t in tensors.items() if name not in stored.tensors and _place(t) not in places]
    if missing:
        raise ValueError(f"{', '.join(map(repr, missing[:5]))} did not get into {str(folder)!r}")
    for name, written in stored.tensors.items():
        value = written.read()
        size += value.nbytes
        if name in tensors and not _same_bits(value, tensors[name]):
            raise ValueError(
                f"{name!r} reads differently than it was written to {str(folder)!r}: is the disk sound?"
            )
    return report, size


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Returns the same for names of one and the same tensor."""
    return (tensor.device, tensor.data_ptr() if tensor.numel() else id(tensor), tensor.shape)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
