"""Where a run took place: versions, hardware, commit and command."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import nmstep
from nmstep.kernels import status

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Returns what a reader needs to judge a result: JSON values, with None for what is not known."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nmstep": nmstep.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "kernels": status().active,
        "commit": _commit(),
        "command": _command(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _command() -> str:
    if not sys.argv:
        return ""
    program = Path(sys.argv[0])
    # What `python -m` leaves there is the path of a file that nobody would type.
    name = program.name if program.name != "__main__.py" else f"python -m nmstep.{program.parent.name}"
    return " ".join([name, *sys.argv[1:]])


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _commit() -> str | None:
    """Returns the commit of nmstep's source tree, with "+" if it has changes; None if it is installed."""
    root = Path(nmstep.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    # Without its locks: on a full disk a look at the tree would leave one behind, and nothing could be committed.
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
