"""``kill -9`` at random moments, then resumption: the run that was killed must end as the one that was not."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from soak.board import Board, Writing
from soak.children import train
from soak.rows import Row, attempt, timed
from soak.runs import STEPS, Whole, resumed

__all__ = ["kill_once", "kill_repeatedly"]

_NEAR = 2  # steps from the switch that still count as around it
_TRIES = 20


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Args:
        aim: what it is meant to hit; what it hit is looked up afterwards.
        step: the first step after which it may come.
        writing: wait further until this is being written; None for no such wait.
        delay: seconds after that.
    """

    aim: str
    step: int
    writing: Writing | None
    delay: float

    def reached(self, board: Board) -> bool:
        """Whether a run is there."""
        return board.step >= self.step and self.writing in (None, board.writing)


def _moment(aim: str, whole: Whole, chance: random.Random) -> Moment:
    """Draws a moment; delays are as long as what they are to hit took in the undisturbed run."""
    switch, step, save = whole.switch_step, whole.step_seconds, whole.save_seconds
    match aim:
        case "dense":
            return Moment(aim, chance.randrange(0, switch - _NEAR), None, chance.uniform(0, step))
        case "switch":
            return Moment(aim, switch - 2 + chance.randrange(3), None, chance.uniform(0, 2 * step))
        case "sparse":
            return Moment(aim, chance.randrange(switch + _NEAR, STEPS), None, chance.uniform(0, step))
        case "checkpoint":
            what = chance.choice([Writing.CHECKPOINT, Writing.CHECKPOINT, Writing.POINTER])
            return Moment(aim, chance.randrange(STEPS - 6), what, chance.uniform(0, 0.8 * save))
        case "metrics":
            return Moment(aim, chance.randrange(STEPS - 6), Writing.METRICS, chance.uniform(0, save / 5))
        case "start":
            return Moment(aim, 0, Writing.HEAD, chance.uniform(0, save))
        case _:
            last = chance.choice([Writing.WEIGHTS, Writing.RESULT, None])
            return Moment(aim, STEPS, last, chance.uniform(0, 2 * save))


# How often each is aimed at, out of twenty.
_AIMS = [
    *["dense"] * 3,
    *["switch"] * 4,
    *["sparse"] * 3,
    *["checkpoint"] * 6,
    *["metrics"] * 1,
    *["start"] * 1,
    *["end"] * 2,
]


@dataclass
class Hits:
    """What the kills hit."""

    phases: Counter[str]
    writes: Counter[str]
    left_behind: int = 0

    def count(self, board: Board, whole: Whole, folder: Path) -> None:
        """Looks up what a run was at when it was killed."""
        self.phases[_phase(board, whole.switch_step)] += 1
        if board.writing:
            self.writes[board.writing.name.lower()] += 1
        self.left_behind += bool(list(folder.glob(".*.tmp")))

    def notes(self) -> list[str]:
        """Returns the counts, in words."""
        phases = ", ".join(f"{count} {name}" for name, count in sorted(self.phases.items()))
        writes = ", ".join(f"{count} {name}" for name, count in sorted(self.writes.items())) or "none"
        return [
            f"hit {phases}",
            f"hit a write in progress: {sum(self.writes.values())} ({writes}); {self.left_behind} of them left a "
            f"file half-written",
        ]


def _phase(board: Board, switch: int) -> str:
    if board.step <= 0:
        return "before the first step"
    if board.step >= STEPS:
        return "after the last step"
    if abs(board.step - switch) <= _NEAR:
        return "around the switch"
    return "with masks" if board.is_sparse else "in the dense phase"


def kill_once(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Kills each of ``count`` runs once, resumes it, and compares what it ends with."""
    row, hits = Row("killed once, resumed"), Hits(Counter(), Counter())
    with timed(row):
        for i in range(count):
            whole = wholes[i % len(wholes)]
            aim = _AIMS[i * 7 % len(_AIMS)]  # any number of kills has all kinds
            place = folder / f"killed-{i}"

            def check(whole: Whole = whole, aim: str = aim, place: Path = place) -> list[str]:
                board = _kill(whole, place, aim, chance)
                hits.count(board, whole, place)
                return _end(whole, place, board)

            attempt(row, f"{whole.config.recipe}, {aim}, number {i}", check)
    row.notes += hits.notes()
    return row


def _kill(whole: Whole, place: Path, aim: str, chance: random.Random) -> Board:
    """Starts runs until one could be killed before it ended, and returns where it was."""
    for _ in range(_TRIES):
        shutil.rmtree(place, ignore_errors=True)
        child = train(whole.config, place)
        moment = _moment(aim, whole, chance)
        if child.wait_until(moment.reached):
            time.sleep(moment.delay)
            child.kill()
        if child.outcome().killed:
            return child.board
    raise TimeoutError(f"no run could be killed at {aim}")


def _end(whole: Whole, place: Path, killed: Board) -> list[str]:
    """Resumes a run to its end, and returns what is wrong with it; a good one is removed."""
    wrong = resumed(whole, place, killed)
    if not wrong:
        shutil.rmtree(place)
    return wrong


def kill_repeatedly(
    wholes: list[Whole], folder: Path, *, count: int, kills: int, chance: random.Random
) -> Row:
    """Kills each of ``count`` runs and its resumptions ``kills`` times in all, and compares what it ends with."""
    row, hits = Row(f"killed {kills} times, resumed each time"), Hits(Counter(), Counter())
    with timed(row):
        for i in range(count):
            whole, place = wholes[i % len(wholes)], folder / f"chain-{i}"

            def check(whole: Whole = whole, place: Path = place) -> list[str]:
                last = Board()
                for number in range(kills):
                    child = train(whole.config, place)
                    # Beyond the checkpoint that the last resumption left, so that the run gets on.
                    step = min(STEPS, (number + 1) * STEPS // kills)
                    if child.wait_until(lambda board, step=step: board.step >= step):  # type: ignore[misc]
                        time.sleep(chance.uniform(0, 2 * whole.save_seconds))
                        child.kill()
                    if child.outcome().killed:
                        hits.count(child.board, whole, place)
                    if child.board.first >= 0:
                        if child.board.first < last.saved:
                            return [f"went on from step {child.board.first}, though {last.saved} were saved"]
                        last = child.board
                return _end(whole, place, last)

            attempt(row, f"{whole.config.recipe}, number {i}", check)
    row.notes += hits.notes()
    return row
