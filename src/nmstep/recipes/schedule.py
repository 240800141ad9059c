"""How the pattern changes after the masks have started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nmstep.patterns import NMPattern

__all__ = ["Constant", "Halving", "Schedule"]


class Schedule(Protocol):
    """Which pattern is in force, given the target and the steps since the masks started."""

    def pattern_at(self, target: NMPattern, steps: int) -> NMPattern:
        """Returns the pattern after ``steps`` optimizer steps since the start."""


@dataclass(frozen=True)
class Constant:
    """The target from the start."""

    def pattern_at(self, target: NMPattern, steps: int) -> NMPattern:
        """Returns ``target``."""
        del steps
        return target


@dataclass(frozen=True, kw_only=True)
class Halving:
    """M−1:M first, then ``floor(M / 2^s)`` of M for s = 1, 2, … down to N, ``interval`` steps each.

    Args:
        interval: optimizer steps that each stage lasts, at least 1.

    Raises:
        ValueError: ``interval`` is not a positive integer.

    Source:
        Decaying Mask (Kao et al. 2022). One published code skips M/2 and gives pruned weights no gradient.

    Example:
        >>> [str(Halving(interval=10).pattern_at(NMPattern(1, 8), t)) for t in (0, 10, 20, 30, 99)]
        ['7:8', '4:8', '2:8', '1:8', '1:8']
    """

    interval: int

    def __post_init__(self) -> None:
        if isinstance(self.interval, bool) or not isinstance(self.interval, int) or self.interval < 1:
            raise ValueError(f"interval must be a number of optimizer steps >= 1, got {self.interval!r}")

    def pattern_at(self, target: NMPattern, steps: int) -> NMPattern:
        """Returns the stage's pattern, never sparser than ``target``."""
        stage = steps // self.interval
        kept = target.m - 1 if stage == 0 else target.m >> stage
        return NMPattern(min(target.m, max(target.n, kept)), target.m)
