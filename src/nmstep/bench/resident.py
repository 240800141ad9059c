"""The memory that a model takes in a fresh process: a job in on stdin, JSON out.

python -m nmstep.bench.resident
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from nmstep.bench.subject import Use
from nmstep.deploy import load_packed, pack, save_packed
from nmstep.verify.files import open_path

__all__ = ["Job", "added_memory"]

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to load and to use.

    Args:
        skeleton: the dense model with its parameters on the meta device.
        file: its weights.
        packed: whether the file is a packed one.
        use: of the model.
        threads: of torch.
    """

    skeleton: nn.Module
    file: Path
    packed: bool
    use: Use
    threads: int


def added_memory(job: Job) -> tuple[int, int] | None:
    """Returns the bytes that loading a model adds to a fresh process, and those after it has been used once.

    Files are mapped, so that weights are read when they are first used. What the process held before does not
    count: torch, the model's code, the threads.

    Returns:
        None where the system does not tell (there is no ``/proc``), or the model's code is in no module that a
        fresh process can import.

    Raises:
        RuntimeError: the process failed, for lack of memory perhaps.
    """
    if not _STATM.exists():
        return None
    try:
        text = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    done = subprocess.run([sys.executable, "-m", "nmstep.bench.resident"], input=text, capture_output=True)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"a process that was to load {job.file.name} failed ({done.returncode}): {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    return None if found is None else (found["loaded"], found["used"])


def _load(job: Job) -> nn.Module:
    if job.packed:
        return load_packed(job.file, job.skeleton)
    stored = open_path(job.file)
    tensors = {name: tensor.read() for name, tensor in stored.tensors.items()}
    tensors |= {alias: tensors[name] for alias, name in stored.metadata.items() if name in tensors}
    job.skeleton.load_state_dict(tensors, assign=True)
    return job.skeleton


def _warm() -> None:
    """Loads a small model and does small products, so that what the first ones import and set up does not count."""
    layer = nn.Linear(64, 64).requires_grad_(False)
    layer.weight[:, ::2] = 0
    with TemporaryDirectory() as folder:
        save_packed(pack(layer, "1:2", fallback=False), Path(folder) / "p.safetensors")
        load_packed(Path(folder) / "p.safetensors", nn.Linear(64, 64, device="meta"), fallback=False)
    for dtype in (torch.float32, torch.bfloat16):
        layer.to(dtype)(torch.ones(16, 64, dtype=dtype))
        pack(layer, "1:2", fallback=False)(torch.ones(16, 64, dtype=dtype))


def _resident() -> int:
    gc.collect()
    return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.inference_mode()
def _main() -> None:
    try:
        job = pickle.load(sys.stdin.buffer)  # from the process that started this one
    except (AttributeError, ImportError):
        print("null")  # noqa: T201
        return
    torch.set_num_threads(job.threads)
    _warm()
    before = _resident()
    model = _load(job)
    loaded = _resident() - before
    job.use(model)
    print(json.dumps({"loaded": loaded, "used": _resident() - before}))  # noqa: T201


if __name__ == "__main__":
    _main()
