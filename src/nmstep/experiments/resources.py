"""The memory that a run needs at most, of the process or of a GPU."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

__all__ = ["peak_memory_mb", "reset_peak_memory"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: str | torch.device | None) -> None:
    """Starts to measure anew, so that a process that does several runs tells them apart."""
    if torch.device(device or "cpu").type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # a system without it gives the peak since the process began
        _CLEAR.write_text("5", encoding="ascii")


def peak_memory_mb(device: str | torch.device | None) -> float | None:
    """Returns the most memory held since :func:`reset_peak_memory`, in 10⁶ bytes; None where it is not known.

    Args:
        device: a GPU, for what torch allocated there; else the process's resident memory is meant.
    """
    if torch.device(device or "cpu").type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError):
        peak = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
        return int(peak[1]) * 1024 / 1e6 if peak else None
    return None
