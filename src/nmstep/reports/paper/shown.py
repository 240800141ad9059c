"""What a view makes of a study: tables, a verdict, figures and the numbers behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Shown", "Table", "Verdict"]

Held = Literal["held", "in part", "not held", "open"]
_WORDS = {
    "held": "The claim held.",
    "in part": "The claim held in part.",
    "not held": "The claim did not hold.",
    "open": "The claim is open.",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text.

    Args:
        title: one line.
        columns: headers.
        rows: cells, as many as there are headers.
        note: a line below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        r"""Returns the table in Markdown, its title and note included.

        Example:
            >>> print(Table(title="Sizes", columns=["what", "MB"], rows=[["a|b", "1"]]).markdown())
            ## Sizes
            <BLANKLINE>
            | what | MB |
            |---|---|
            | a\|b | 1 |
        """
        lines = [f"## {self.title}", "", _line(self.columns), "|" + "---|" * len(self.columns)]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure that is drawn when the page is written.

    Args:
        file: its name beside the page.
        caption: what it shows.
        draw: returns it, or None where there is nothing to draw.
    """

    file: str
    caption: str
    draw: Callable[[], Figure | None]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the paper's claim was seen in these runs.

    Args:
        held: the answer.
        why: the numbers that say so, in sentences.
    """

    held: Held
    why: str = ""

    @property
    def text(self) -> str:
        """The verdict in words."""
        return " ".join(part for part in (f"**{_WORDS[self.held]}**", self.why) if part)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a view makes of a study.

    Args:
        tables: in the order of the page.
        verdict: on the claim; None where nothing is claimed that runs could show.
        pictures: in the order of the page.
        numbers: everything that the tables hold, as JSON values.
        remarks: sentences below the tables.
    """

    tables: Sequence[Table] = ()
    verdict: Verdict | None = None
    pictures: Sequence[Picture] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
