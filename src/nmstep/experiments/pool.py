"""Several runs at a time in processes of their own, of which any may fail or be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from nmstep.experiments.config import RunConfig
from nmstep.experiments.progress import Progress, Status
from nmstep.experiments.runner import run

__all__ = ["Job", "Outcome", "PoolProgress", "run_jobs"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do.

    Args:
        name: what progress and errors call it.
        config: of the run.
        folder: its run folder; an unfinished run there is resumed, a finished one not repeated.
    """

    name: str
    config: RunConfig
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Args:
        result: what the run returned, or None where it failed.
        error: one line that says why it failed, or None.
        details: the traceback of the error, or "".
        warnings: texts of the warnings that the run gave, each once.
    """

    result: dict[str, Any] | None = None
    error: str | None = None
    details: str = ""
    warnings: tuple[str, ...] = ()


class PoolProgress(Protocol):
    """What :func:`run_jobs` calls, always from its own process and thread."""

    def started(self, name: str, total: int, step: int) -> None:
        """A run starts, or goes on, after ``step`` of ``total`` optimizer steps."""

    def update(self, name: str, status: Status) -> None:
        """Where a run is."""

    def ended(self, name: str, outcome: Outcome) -> None:
        """A run ended, well or not; one that was finished already has not been started."""


@dataclass
class _Worker:
    process: BaseProcess
    job: Job | None = None


def run_jobs(
    jobs: Sequence[Job], *, processes: int, progress: PoolProgress | None = None
) -> dict[str, Outcome]:
    """Does all jobs and returns how each ended, by name; one that fails does not stop the others.

    Args:
        jobs: with names that differ.
        processes: runs at a time; 1 does them here, one after the other. More are started with
            ``spawn``, so a script that calls this must do so under ``if __name__ == "__main__":``.
        progress: is told where the runs are.
    """
    progress = progress or _Silent()
    if processes == 1 or len(jobs) <= 1:
        outcomes = {}
        for job in jobs:
            outcomes[job.name] = _attempt(job, _Named(job.name, progress))
            progress.ended(job.name, outcomes[job.name])
        return outcomes
    return _Pool(jobs, progress).work(processes)


class _Pool:
    def __init__(self, jobs: Sequence[Job], progress: PoolProgress) -> None:
        self.waiting = deque(jobs)
        self.progress = progress
        self.outcomes: dict[str, Outcome] = {}
        self.workers: dict[Connection, _Worker] = {}

    def work(self, processes: int) -> dict[str, Outcome]:
        try:
            for _ in range(min(processes, len(self.waiting))):
                self._hire()
            while self.workers:
                for connection in wait(list(self.workers)):
                    assert isinstance(connection, Connection)
                    self._hear(connection)
        finally:
            for connection, worker in self.workers.items():
                connection.close()
                worker.process.terminate()  # a run can be killed at any moment and resumed
                worker.process.join()
        return self.outcomes

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.workers[ours] = _Worker(process)
        self._assign(ours)

    def _assign(self, connection: Connection) -> None:
        worker = self.workers[connection]
        worker.job = self.waiting.popleft() if self.waiting else None
        with contextlib.suppress(BrokenPipeError):  # it died, as the end of its pipe will say
            connection.send(worker.job)

    def _hear(self, connection: Connection) -> None:
        worker = self.workers[connection]
        try:
            kind, *content = connection.recv()
        except (EOFError, ConnectionResetError):
            self._lost(connection)
            return
        assert worker.job is not None
        name = worker.job.name
        if kind == "ended":
            self._end(name, content[0])
            self._assign(connection)
        elif kind == "started":
            self.progress.started(name, *content)
        else:
            self.progress.update(name, *content)

    def _lost(self, connection: Connection) -> None:
        worker = self.workers.pop(connection)
        connection.close()
        worker.process.join()
        if worker.job is None:
            return
        self._end(worker.job.name, Outcome(error=_how_it_died(worker.process.exitcode)))
        if self.waiting:
            self._hire()

    def _end(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        self.progress.ended(name, outcome)


def _how_it_died(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}; start again to resume it"
    return f"its process ended with status {exitcode}; start again to resume it"


def _serve(connection: Connection) -> None:
    """Does jobs until there are none; runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    try:
        while (job := connection.recv()) is not None:
            connection.send(("ended", _attempt(job, _Sender(connection))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone, and nothing of a run needs tidying up


def _attempt(job: Job, progress: Progress) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = run(job.config, job.folder, resume=True, progress=progress)
        except BrokenPipeError:
            raise
        except Exception as error:
            expected = isinstance(error, (ValueError, OSError, ArithmeticError, RuntimeError))
            return Outcome(
                error=str(error) if expected else f"{type(error).__name__}: {error}",
                details=traceback.format_exc(),
                warnings=_texts(caught),
            )
    return Outcome(result=result, warnings=_texts(caught))


def _texts(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(warning.message) for warning in caught))


class _Named:
    """Passes a run's progress on under its name."""

    def __init__(self, name: str, progress: PoolProgress) -> None:
        self.name, self.progress = name, progress

    def start(self, total: int, step: int) -> None:
        self.progress.started(self.name, total, step)

    def update(self, status: Status) -> None:
        self.progress.update(self.name, status)

    def evaluated(self, step: int, scores: Mapping[str, float], masked: Mapping[str, float] | None) -> None:
        pass

    def switched(self, step: int, reason: str) -> None:
        pass

    def stop(self) -> None:
        pass


class _Sender(_Named):
    """Passes a run's progress on through a pipe."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def start(self, total: int, step: int) -> None:
        self.connection.send(("started", total, step))

    def update(self, status: Status) -> None:
        self.connection.send(("update", status))


class _Silent:
    def started(self, name: str, total: int, step: int) -> None:
        pass

    def update(self, name: str, status: Status) -> None:
        pass

    def ended(self, name: str, outcome: Outcome) -> None:
        pass
