"""One row of the table: what was tried, how often, and what did not hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Row", "attempt", "failed", "table", "timed"]


@dataclass
class Row:
    """A kind of disturbance.

    Args:
        what: the row's name.
        tried: how often.
        failures: what was wrong, one line each; empty if all held.
        notes: what a reader should know beside the numbers.
        seconds: all of it took.
        skipped: why nothing was tried; empty where something was to be.
    """

    what: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""

    def add(self, case: str, problems: Iterable[str]) -> None:
        """Counts one case, which held unless there are problems."""
        self.tried += 1
        found = list(problems)
        if found:
            self.failures.append(f"{case}: {'; '.join(found)}")


@contextmanager
def timed(row: Row) -> Iterator[Row]:
    """Adds the time that a ``with`` block takes to a row."""
    started = time.perf_counter()
    try:
        yield row
    finally:
        row.seconds += time.perf_counter() - started


def attempt(row: Row, case: str, check: Callable[[], Iterable[str]]) -> None:
    """Counts one case of a check that returns its problems; an exception is one."""
    try:
        row.add(case, check())
    except Exception as error:
        row.add(case, [f"{type(error).__name__}: {error}"])


def failed(rows: Iterable[Row]) -> bool:
    """Whether anything did not hold, or nothing was tried where it could have been."""
    return any(row.failures or not (row.tried or row.skipped) for row in rows)


def table(rows: list[Row]) -> str:
    """Returns the rows as a Markdown table, with notes and failures below.

    Example:
        >>> print(table([Row("a kill", tried=3, failures=["at step 2: gone"], seconds=1.5)]))
        | what | tried | held | failed | seconds |
        |---|---|---|---|---|
        | a kill | 3 | 2 | 1 | 1.5 |
        | all | 3 | 2 | 1 | 1.5 |
        <BLANKLINE>
        FAILED a kill: at step 2: gone
    """
    everything = Row(
        "all",
        tried=sum(row.tried for row in rows),
        failures=[failure for row in rows for failure in row.failures],
        seconds=sum(row.seconds for row in rows),
    )
    lines = ["| what | tried | held | failed | seconds |", "|---|---|---|---|---|"]
    for row in [*rows, everything]:
        held = row.tried - len(row.failures)
        lines.append(f"| {row.what} | {row.tried:,} | {held:,} | {len(row.failures):,} | {row.seconds:.1f} |")
    notes = [f"{row.what}: {note}" for row in rows for note in row.notes]
    notes += [f"{row.what}: not tried, {row.skipped}" for row in rows if row.skipped]
    wrong = [f"FAILED {row.what}: {failure}" for row in rows for failure in row.failures[:5]]
    return "\n".join([*lines, *([""] if notes or wrong else []), *notes, *wrong])
