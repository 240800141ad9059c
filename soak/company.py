"""Two processes on one run folder: the second is refused, and the first notices nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from soak.children import Outcome, train
from soak.rows import Row, attempt, timed
from soak.runs import STEPS, Whole, differences

__all__ = ["second_process", "start_together"]


def second_process(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Starts a second process when the first is at a random step; every third without ``resume``."""
    row = Row("second process on one folder")
    with timed(row):
        for i in range(count):
            whole, place, step = wholes[i % len(wholes)], folder / f"shared-{i}", chance.randrange(STEPS - 25)

            def check(
                whole: Whole = whole, place: Path = place, step: int = step, resume: bool = i % 3 != 0
            ) -> list[str]:
                first = train(whole.config, place)
                first.wait_until(lambda board: board.step >= step)
                second = train(whole.config, place, resume=resume).outcome()
                wrong = _refused(second, resume=resume)
                return _cleared(wrong + _ended(first.outcome(), whole, place), place)

            attempt(row, f"at step {step}", check)
    return row


def start_together(wholes: list[Whole], folder: Path, *, count: int) -> Row:
    """Starts two processes at once: one trains and the other is refused, whichever comes first."""
    row = Row("two processes started at once")
    with timed(row):
        for i in range(count):
            whole, place = wholes[i % len(wholes)], folder / f"together-{i}"

            def check(whole: Whole = whole, place: Path = place) -> list[str]:
                outcomes = [child.outcome() for child in [train(whole.config, place) for _ in range(2)]]
                outcomes.sort(key=lambda outcome: outcome.error is not None)
                wrong = _ended(outcomes[0], whole, place) + _refused(outcomes[1], resume=True)
                return _cleared(wrong, place)

            attempt(row, f"number {i}", check)
    return row


def _refused(second: Outcome, *, resume: bool) -> list[str]:
    expected = ("ValueError", "another process is training") if resume else ("FileExistsError", "holds a run")
    if second.error is None:
        return ["the second was not refused"]
    kind, message = second.error
    return [] if kind == expected[0] and expected[1] in message else [f"refused badly: {kind}: {message}"]


def _ended(first: Outcome, whole: Whole, place: Path) -> list[str]:
    if first.error is not None:
        return [f"the first failed: {first.error[1]}"]
    return differences(place, whole.folder)


def _cleared(wrong: list[str], place: Path) -> list[str]:
    if not wrong:
        shutil.rmtree(place)
    return wrong
