"""How a run tells others where it is: the library itself never prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Progress", "Silent", "Status"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment.

    Args:
        step: optimizer steps taken.
        loss: of the last batch.
        phase: ``"dense"`` or ``"sparse"``.
        z_mean: what the switch compares with its threshold; None where it has nothing yet.
        threshold: None where the recipe has no such switch, or has switched.
    """

    step: int
    loss: float
    phase: str
    z_mean: float | None = None
    threshold: float | None = None


class Progress(Protocol):
    """What :func:`~nmstep.experiments.run` calls while it trains, always from the same thread."""

    def start(self, total: int, step: int) -> None:
        """Training starts, or goes on, after ``step`` of ``total`` optimizer steps."""

    def update(self, status: Status) -> None:
        """Called several times a second, and after the last step."""

    def evaluated(self, step: int, scores: Mapping[str, float], masked: Mapping[str, float] | None) -> None:
        """The model was scored; ``masked`` are its scores under masks, until a recipe's masks start."""

    def switched(self, step: int, reason: str) -> None:
        """The masks started after ``step`` steps."""

    def stop(self) -> None:
        """Training ended, well or not."""


class Silent:
    """Says nothing."""

    def start(self, total: int, step: int) -> None:
        """Does nothing."""

    def update(self, status: Status) -> None:
        """Does nothing."""

    def evaluated(self, step: int, scores: Mapping[str, float], masked: Mapping[str, float] | None) -> None:
        """Does nothing."""

    def switched(self, step: int, reason: str) -> None:
        """Does nothing."""

    def stop(self) -> None:
        """Does nothing."""
