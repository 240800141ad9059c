"""The bytes of a model's file and in memory: dense, dense in bfloat16, and packed."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nmstep.bench.resident import Job, added_memory
from nmstep.bench.subject import Subject
from nmstep.deploy import save_packed
from nmstep.deploy.writing import without_aliases, write_tensors

__all__ = ["Footprint", "footprints"]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """How much a model takes.

    Args:
        file: bytes of its safetensors file.
        loaded: bytes that loading it adds to a fresh process, which maps the file; None where that is not known.
        used: the same after it has been used once on one example.
    """

    file: int
    loaded: int | None
    used: int | None


@torch.no_grad()
def footprints(
    subject: Subject, *, memory: bool = True, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Footprint]:
    """Returns what each of three models takes: ``"dense"``, ``"dense bf16"`` and ``"packed"``.

    Their files are written into a temporary folder, unless the packed one is there already.

    Args:
        subject: the models.
        memory: False for the files alone.
        tell: is called with the name of each before it is measured.

    Raises:
        OSError: there is no room for the files.
        RuntimeError: a process that loads one of them failed.
    """
    skeleton = _skeleton(subject.dense)
    found: dict[str, Footprint] = {}
    for name in ("dense", "dense bf16", "packed"):
        tell(name)
        dtype = torch.bfloat16 if name == "dense bf16" else torch.float32
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            if name == "packed":
                file = subject.file or file
                if subject.file is None:
                    save_packed(subject.packed, file)
            else:
                _save_dense(subject.dense, dtype, file)
            job = Job(
                skeleton=copy.deepcopy(skeleton).to(dtype),
                file=file,
                packed=name == "packed",
                use=subject.use(1),
                threads=torch.get_num_threads(),
            )
            loaded, used = (added_memory(job) if memory else None) or (None, None)
            found[name] = Footprint(file=file.stat().st_size, loaded=loaded, used=used)
    return found


def _save_dense(model: nn.Module, dtype: torch.dtype, path: Path) -> None:
    tensors, aliases = without_aliases(model.state_dict())
    narrow = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    write_tensors(narrow, path, {"format": "pt", **aliases})


def _skeleton(model: nn.Module) -> nn.Module:
    """Returns a model without weights: parameters are on the meta device, buffers as they are."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)
