"""Progress of one run or of several: rich bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from nmstep.cli.console import errors
from nmstep.experiments import Outcome, Status
from nmstep.switching.reasons import reason_text

__all__ = ["BenchBar", "CompareBars", "TrainBar", "describe"]

_SECONDS_BETWEEN_LINES = 10.0


def describe(status: Status) -> str:
    """Returns loss, phase and the switch's statistic against its threshold.

    Example:
        >>> describe(Status(step=9, loss=0.5, phase="dense", z_mean=3.1e-8, threshold=1e-8))
        'loss 0.500 dense Z 3.1e-08 > 1e-08'
        >>> describe(Status(step=9, loss=0.5, phase="dense", z_mean=3.1e-9, threshold=1e-8))
        'loss 0.500 dense Z 3.1e-09 < 1e-08 (too early)'
    """
    text = f"loss {status.loss:.3f} {status.phase}"
    if status.z_mean is not None and status.threshold is not None:
        early = status.z_mean < status.threshold  # or else the masks would be on
        text += (
            f" Z {status.z_mean:.1e} {'<' if early else '>'} {status.threshold:.0e}{' (too early)' * early}"
        )
    return text


class _Count(ProgressColumn):
    """Steps taken of all."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        _Count(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(compact=True),
        console=errors,
        disable=not errors.is_terminal,
        expand=True,
        refresh_per_second=8,
    )


class _Lines:
    """Sparse lines for a log file."""

    def __init__(self) -> None:
        self._last = -1e9

    def say(self, text: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if errors.is_terminal or not (always or now - self._last >= _SECONDS_BETWEEN_LINES):
            return
        self._last = now
        errors.print(text, soft_wrap=True, markup=False)


class _Bars:
    def __init__(self) -> None:
        self.bars = _bars()
        self.lines = _Lines()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()


class TrainBar(_Bars):
    """Shows one run; a :class:`~nmstep.experiments.Progress`."""

    def __init__(self) -> None:
        super().__init__()
        self.task: TaskID = self.bars.add_task("reading the data", total=None, status="")

    def start(self, total: int, step: int) -> None:
        """Shows the bar, at the step where a resumed run goes on."""
        self.total = total
        self.bars.reset(self.task, total=total, completed=step, description="", status="")
        if step:
            errors.print(f"Going on after step {step} of {total}.")

    def update(self, status: Status) -> None:
        """Moves the bar."""
        self.bars.update(self.task, completed=status.step, status=describe(status))
        self.lines.say(
            f"step {status.step}/{self.total} {describe(status)}", always=status.step == self.total
        )

    def evaluated(self, step: int, scores: Mapping[str, float], masked: Mapping[str, float] | None) -> None:
        """Scores are in the metrics file; a bar has no room for them."""

    def switched(self, step: int, reason: str) -> None:
        """Says that the masks started."""
        errors.print(f"Step {step}: masks on ({reason_text(reason)}).")

    def stop(self) -> None:
        """The bar stops with its block."""


class BenchBar(_Bars):
    """Shows how much has been measured."""

    def __init__(self) -> None:
        super().__init__()
        self.task: TaskID = self.bars.add_task("loading the model", total=None, status="")
        self.done = 0

    def tell(self, text: str, total: int | None) -> None:
        """Says what is measured next, of how many things; all that was told before is done."""
        self.bars.update(self.task, description=text, total=total, completed=self.done)
        self.lines.say(f"{self.done}/{total} {text}")
        self.done += 1


class CompareBars(_Bars):
    """Shows all runs of a comparison; a :class:`~nmstep.experiments.PoolProgress`.

    Args:
        names: of the runs.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self.width = max(map(len, names))
        self.active: dict[str, TaskID] = {}
        self.totals: dict[str, int] = {}
        self.done = 0
        self.all: TaskID = self.bars.add_task(
            "all runs".ljust(self.width), total=len(names), status="reading the data"
        )

    def started(self, name: str, total: int, step: int) -> None:
        """Adds a bar for the run."""
        self.totals[name] = total
        self.bars.update(self.all, status="")
        self.active[name] = self.bars.add_task(name.ljust(self.width), total=total, completed=step, status="")

    def update(self, name: str, status: Status) -> None:
        """Moves a run's bar."""
        self.bars.update(self.active[name], completed=status.step, status=describe(status))
        running = set(self.active.values())
        share = sum(task.percentage / 100 for task in self.bars.tasks if task.id in running)
        self.bars.update(self.all, completed=self.done + share)
        self.lines.say(
            f"{self.done}/{len(self.names)} runs done; "
            f"{name} step {status.step}/{self.totals[name]} {describe(status)}"
        )

    def ended(self, name: str, outcome: Outcome) -> None:
        """Replaces a run's bar by a line with its result."""
        self.done += 1
        task = self.active.pop(name, None)
        if task is not None:
            self.bars.remove_task(task)
        self.bars.update(self.all, completed=self.done)
        text = f"{name.ljust(self.width)}  "
        if outcome.result is None:
            errors.print(f"{text}[red]failed[/red]")
            return
        metric = outcome.result["metric"]
        final = outcome.result["final"]
        errors.print(f"{text}{metric} {final[metric]:.2f}  test loss {final['loss']:.4f}")
