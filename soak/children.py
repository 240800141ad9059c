"""Processes that train and can be killed: forked from one that has imported torch, so that each starts at once.

What is killed is a process of its own that writes real files. Forking asks that the parent has no threads: it never
trains itself.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nmstep
from nmstep.experiments import RunConfig, checkpoint, load_task, run, runner
from nmstep.experiments.environment import environment
from nmstep.experiments.metrics import MetricsLog
from nmstep.experiments.training import Training
from soak.board import Board, Writing

__all__ = ["Child", "Outcome", "in_child", "train", "warm_up"]

_PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Args:
        value: what it returned; None if it did not.
        error: what it raised, with the message; None if nothing.
        warnings: what it warned of.
        killed: whether a signal ended it.
    """

    value: Any = None
    error: tuple[str, str] | None = None
    warnings: tuple[str, ...] = ()
    killed: bool = False


class Child:
    """A forked process that does one thing.

    Args:
        do: what; its result must be picklable.
        board: what it shares with this process.
    """

    def __init__(self, do: Callable[[], Any], board: Board | None = None) -> None:
        self.board = board or Board()
        self._from_child, to_parent = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._from_child)
            _be_child(do, to_parent)
        os.close(to_parent)
        self._status: int | None = None

    def ended(self) -> bool:
        """Whether the process is over."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def wait_until(self, moment: Callable[[Board], bool]) -> bool:
        """Waits until the board shows a moment, and returns whether it did while the process lived."""
        deadline = time.monotonic() + _PATIENCE
        while not moment(self.board):
            if self.ended():
                return moment(self.board)
            if time.monotonic() > deadline:
                raise TimeoutError("a training process made no progress")
            time.sleep(20e-6)
        return not self.ended()

    def kill(self) -> None:
        """Ends the process as ``kill -9`` does."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        """Waits for the end of the process, and returns how it came."""
        with os.fdopen(self._from_child, "rb") as pipe:
            data = pipe.read()
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        if os.WIFSIGNALED(self._status):
            return Outcome(killed=True)
        outcome: Outcome = pickle.loads(data)  # what the process itself wrote
        return outcome


def _be_child(do: Callable[[], Any], to_parent: int) -> None:
    value, error = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = do()
        except BaseException as raised:
            error = (type(raised).__name__, str(raised))
    said = tuple(str(warning.message) for warning in caught)
    with os.fdopen(to_parent, "wb") as pipe:
        pickle.dump(Outcome(value, error, said), pipe)
    os._exit(0)


def in_child(do: Callable[[], Any]) -> Outcome:
    """Does something in a process of its own and returns how it ended."""
    return Child(do).outcome()


def train(
    config: RunConfig, folder: Path, *, resume: bool = True, before: Callable[[], None] | None = None
) -> Child:
    """Returns a process that trains in a run folder, and says on its board where it is.

    Args:
        config: as :func:`nmstep.experiments.run` takes it.
        folder: likewise.
        resume: likewise.
        before: what the process does to itself first.
    """
    board = Board()

    def do() -> dict[str, Any]:
        if before is not None:
            before()
        _tell(board)
        return run(config, folder, resume=resume)

    return Child(do, board)


def _tell(board: Board) -> None:
    """Makes the run of this process say where it is."""
    go, head, step = runner._Run.go, runner._Run._write_head, Training.train_step
    save = checkpoint.save

    def said_go(self: runner._Run) -> dict[str, Any]:
        board.note(0, is_sparse=False)
        return go(self)

    def said_head(self: runner._Run) -> None:
        training = self.training  # has taken what the folder held
        board.begin(training.step, is_sparse=training.sparsifier.phase == "sparse")
        with board.saying(Writing.HEAD):
            head(self)

    def said_save(folder: Path, state: dict[str, Any], *, step: int) -> None:
        save(folder, state, step=step)
        board.note_saved()

    def said_step(self: Training) -> torch.Tensor:
        loss = step(self)
        board.note(self.step, is_sparse=self.sparsifier.phase == "sparse")
        return loss

    runner._Run.go, runner._Run._write_head = said_go, said_head  # type: ignore[method-assign]
    Training.train_step = said_step  # type: ignore[method-assign]
    checkpoint.save = said_save
    _tell_writes(board, MetricsLog, "write", Writing.METRICS)
    _tell_writes(board, checkpoint, "write_atomically", Writing.CHECKPOINT)
    _tell_writes(board, checkpoint, "write_json", Writing.POINTER)
    _tell_writes(board, runner, "save_weights", Writing.WEIGHTS)
    _tell_writes(board, runner, "write_json", Writing.RESULT)


def _tell_writes(board: Board, owner: Any, name: str, what: Writing) -> None:
    write = getattr(owner, name)

    def said(*arguments: Any, **named: Any) -> Any:
        with board.saying(what):
            return write(*arguments, **named)

    setattr(owner, name, said)


def warm_up(config: RunConfig) -> None:
    """Imports in this process what a run imports late, without a backward pass, which would start threads."""
    import safetensors.torch  # noqa: F401

    torch.set_num_threads(1)
    load_task(config)
    environment()
    model = nn.Linear(8, 4)
    optimizer = nmstep.AdamW(model.parameters())
    sparsifier = nmstep.sparsify(model, optimizer, nmstep.STE("2:4"))
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    sparsifier.finalize()
    nmstep.verify(model, "2:4").raise_if_failed()
