"""Names of parameters in tables: whole, and broken after a dot where a column is too narrow for them."""

from __future__ import annotations

import re

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

__all__ = ["Dotted", "broken"]


def broken(name: str, width: int) -> list[str]:
    """Returns the lines of a name; a part that is longer than a line has lines of its own.

    Example:
        >>> broken("bert.encoder.layer.0.output.dense.weight", 24)
        ['bert.encoder.layer.0.', 'output.dense.weight']
    """
    lines = [""]
    for part in re.findall(r"[^. ]*[. ]?", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return lines


class Dotted:
    """A name that rich breaks after its dots.

    Args:
        name: or several, with spaces between them.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Gives rich the lines that fit its column."""
        for line in broken(self.name, options.max_width):
            yield Text(line, overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Tells rich the least and the most room that the name needs."""
        return Measurement(max(map(len, broken(self.name, 1))), len(self.name)).with_maximum(
            options.max_width
        )
