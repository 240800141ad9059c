"""The N:M pattern as a value: the only parser of ``"2:4"`` in nmstep."""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import dataclass

__all__ = ["NMPattern"]


@dataclass(frozen=True, slots=True)
class NMPattern:
    """N weights KEPT of every M consecutive ones along the reduction dimension.

    ``n == m`` keeps everything: a layer-wise plan may leave a layer dense that way.

    Args:
        n: weights kept in each group, ``1 <= n <= m``.
        m: consecutive weights in a group, ``m >= 1``.

    Raises:
        TypeError: ``n`` or ``m`` is not an int.
        ValueError: ``n`` or ``m`` is out of range.

    Example:
        >>> pattern = NMPattern.parse("2:4")
        >>> pattern.n, pattern.m, pattern.density, str(pattern)
        (2, 4, 0.5, '2:4')
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        for value in (self.n, self.m):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"an N:M pattern takes two integers, got {self.n!r} and {self.m!r}")
        if not 1 <= self.n <= self.m:
            raise ValueError(
                f"pattern {self} keeps {self.n} of every {self.m} weights, which is impossible: "
                f"N is the number KEPT, so it must lie between 1 and M, as in '2:4' or '1:16'"
            )

    @classmethod
    def parse(cls, text: str | NMPattern) -> NMPattern:
        """Returns the pattern that ``text`` spells; an ``NMPattern`` comes back as it is.

        Args:
            text: two integers and one colon, ``"N:M"``.

        Raises:
            TypeError: ``text`` is neither a str nor an ``NMPattern``.
            ValueError: ``text`` is not of the form ``"N:M"``, or N is not in 1 … M.

        Example:
            >>> NMPattern.parse("two:four")
            Traceback (most recent call last):
                ...
            ValueError: cannot read pattern 'two:four': expected 'N:M' with N weights kept of every M, as in '2:4'
        """
        if isinstance(text, NMPattern):
            return text
        if not isinstance(text, str):
            raise TypeError(f"a pattern is a string such as '2:4' or an NMPattern, got {reprlib.repr(text)}")
        match = re.fullmatch(r"\s*([0-9]+)\s*:\s*([0-9]+)\s*", text)
        if match is None:
            raise ValueError(
                f"cannot read pattern {text!r}: expected 'N:M' with N weights kept of every M, as in '2:4'"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def density(self) -> float:
        """Share of weights kept, ``n / m``."""
        return self.n / self.m

    @property
    def is_dense(self) -> bool:
        """Whether every weight is kept."""
        return self.n == self.m

    def index_bits(self, *, combinatorial: bool = False) -> int:
        """Returns the bits that say which weights of one group are kept.

        Args:
            combinatorial: count ``ceil(log2 C(M, N))``, the least possible, instead of the usual
                ``N * ceil(log2 M)``.

        Example:
            >>> NMPattern(2, 4).index_bits(), NMPattern(2, 4).index_bits(combinatorial=True)
            (4, 3)
        """
        if combinatorial:
            return (math.comb(self.m, self.n) - 1).bit_length()
        return self.n * (self.m - 1).bit_length()

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"
