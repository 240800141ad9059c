"""Progress of a study of a hundred runs: the active ones and one total, however many there are."""

from __future__ import annotations

from collections.abc import Sequence

from nmstep.cli.console import errors
from nmstep.cli.progress import CompareBars
from nmstep.experiments import Outcome, Status

__all__ = ["StudyBars"]


class StudyBars(CompareBars):
    """Shows the runs that are active and one total; a :class:`~nmstep.experiments.PoolProgress`.

    A finished run leaves no line on a terminal, since its study's table follows. In a log file it does.

    Args:
        title: of the total.
        names: of the runs and preparations.
    """

    def __init__(self, title: str, names: Sequence[str]) -> None:
        super().__init__([*names, title])
        self.names = names
        self.bars.update(self.all, description=title.ljust(self.width), total=max(1, len(names)))

    def update(self, name: str, status: Status) -> None:
        """Moves a run's bar; the switch's statistic would not fit beside names this long."""
        super().update(name, Status(step=status.step, loss=status.loss, phase=status.phase))

    def ended(self, name: str, outcome: Outcome) -> None:
        """Removes a run's bar; a preparation has no result, and a run finished earlier has no bar."""
        was_active = name in self.active
        if outcome.error is None and (outcome.result is None or errors.is_terminal or not was_active):
            self.done += 1
            if was_active:
                self.bars.remove_task(self.active.pop(name))
            self.bars.update(self.all, completed=self.done)
            return
        super().ended(name, outcome)
