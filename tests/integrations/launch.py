"""Starts the ranks of a test: forked from a server that has imported torch once, so that each costs little."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ranked", "torch.distributed.checkpoint.state_dict"])


def launched(
    ranks: int, work: Callable[..., Any], *arguments: Any, timeout: float = 40, limit: float = 240
) -> list[tuple[str, Any]]:
    """Runs ``work(*arguments)`` on so many ranks.

    Args:
        ranks: how many.
        work: a function of a module; runs with torch.distributed initialised.
        arguments: its arguments.
        timeout: seconds after which the ranks give up waiting for each other.
        limit: seconds after which all of them are ended.

    Returns:
        For each rank ``("done", what it returned)``, ``("raised", its traceback)`` or ``("died", exit code)``.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (ranks, folder, timeout, work, arguments)
        processes = [
            _CONTEXT.Process(target=_enter, args=(rank, *given), daemon=True) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + limit
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        assert not late, f"{len(late)} of {ranks} ranks did not end within {limit} s"
        found = []
        for rank, process in enumerate(processes):
            path = Path(folder) / f"{rank}.pt"
            found.append(
                torch.load(path, weights_only=False) if path.exists() else ("died", process.exitcode)
            )
        return found


def results(found: list[tuple[str, Any]]) -> list[Any]:
    """Returns what each rank returned; fails where one did not."""
    assert all(kind == "done" for kind, _ in found), "\n".join(
        str(value) for kind, value in found if kind != "done"
    )
    return [value for _, value in found]


def _enter(
    rank: int, ranks: int, folder: str, timeout: float, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "cpu:gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )
    try:
        outcome = ("done", work(*arguments))
    except BaseException:
        outcome = ("raised", traceback.format_exc())
    torch.save(outcome, Path(folder) / f"{rank}.pt")
    if outcome[0] == "raised":
        os._exit(1)  # at once, so that the other ranks see it
    dist.destroy_process_group()
