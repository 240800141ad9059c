"""What was measured of a packed model, as tables and sentences for 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from nmstep.bench import Footprint, Measured, MeasuredLayer
from nmstep.deploy.speed import ROWS, Speed

__all__ = ["break_even_table", "footprint_table", "layer_table", "model_table", "ranges", "verdict"]

_SHOWN = {"dense": "dense fp32", "dense bf16": "dense bf16", "packed": "packed"}
_ALIKE, _TIE = 1.05, 1.02


def model_table(measured: Measured) -> Table:
    """Returns the time, or the tokens per second, of the whole model by number of examples."""
    unit = "ms" if measured.decoded is None else "tok/s"
    table = _table(f"the whole model, {_units(measured)}", ("examples",), unit)
    for size, speed in measured.speeds.items():
        table.add_row(f"{size}", *_cells(speed, measured.tokens_per_second(size)))
    return table


def layer_table(layers: Sequence[MeasuredLayer], size: int) -> Table:
    """Returns the time of each kind of layer on what the model gives it."""
    title = f"its layers, {size} example{'s' if size > 1 else ''}, milliseconds"
    table = _table(title, ("weight", "pattern", "layers"), "ms")
    for layer in layers:
        speed = layer.speed
        table.add_row(_shape(layer), str(speed.pattern), f"{len(speed.names)}", *_cells(speed, None))
    return table


def break_even_table(layers: Sequence[MeasuredLayer]) -> Table:
    """Returns how many times as fast a packed layer is by number of rows, and where it wins."""
    table = Table(
        box=SIMPLE_HEAD,
        title="packed layers: times as fast as dense, by rows at once",
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("weight, choice", overflow="fold")
    table.add_column("over")
    for rows in ROWS:
        table.add_column(f"{rows}", justify="right", no_wrap=True)
    table.add_column("wins at")
    for layer in layers:
        if not layer.rungs:
            table.add_row(_shape(layer), "fp32", *[""] * len(ROWS), "")
            table.add_row(
                f"{layer.speed.pattern}, runs dense", "bf16", *[""] * len(ROWS), "", end_section=True
            )
            continue
        choices = (_shape(layer), f"{layer.speed.pattern}, {_choice(layer.dense_from)}")
        for left, name, opponent in zip(choices, ("fp32", "bf16"), ("dense", "dense bf16"), strict=True):
            ratios = {_nearest(rung.rows): getattr(rung, name).ratio for rung in layer.rungs}
            cells = [_figure(ratios[rows]) if rows in ratios else "" for rows in ROWS]
            wins = ranges(layer.wins(opponent), [rung.rows for rung in layer.rungs])
            table.add_row(left, name, *cells, wins, end_section=name == "bf16")
    return table


def footprint_table(footprints: dict[str, Footprint]) -> Table:
    """Returns the bytes of each model's file, and what it adds to a process."""
    table = Table(
        box=SIMPLE_HEAD, title="file and memory", title_justify="left", pad_edge=False, collapse_padding=True
    )
    for place, header in enumerate(("model", "file", "of fp32", "loaded", "after one use")):
        table.add_column(header, justify="right" if place else "left")
    whole = footprints["dense"].file
    for name, footprint in footprints.items():
        sizes = [
            "unknown" if size is None else f"+{decimal(max(0, size))}"
            for size in (footprint.loaded, footprint.used)
        ]
        table.add_row(_SHOWN[name], decimal(footprint.file), f"{100 * footprint.file / whole:.1f} %", *sizes)
    return table


def verdict(size: int, speed: Speed) -> str:
    """Returns which of the three models wins with so many examples, and by how much.

    Example:
        >>> from nmstep.timing import Timing
        >>> def timing(dense):
        ...     return Timing(ratio=dense, low=dense, high=dense, ms=dense, other_ms=1.0)
        >>> verdict(1, Speed(fp32=timing(1.7), bf16=timing(0.5)))
        'With 1 example dense bf16 wins: 2.00 x packed, 3.40 x dense fp32.'
        >>> verdict(4, Speed(fp32=timing(1.7), bf16=timing(1.03)))
        'With 4 examples packed wins by a hair: 1.03 x dense bf16, 1.70 x dense fp32.'
        >>> verdict(4, Speed(fp32=timing(1.01), bf16=timing(1.5)))
        'With 4 examples dense fp32 and packed tie: 1.50 x dense bf16.'
    """
    times = sorted(speed.times.items(), key=lambda item: item[1])
    (best, least), *others = times
    size_ = f"With {size} example{'s' if size > 1 else ''}"
    if others[0][1] / least < _TIE:
        pair = " and ".join(_SHOWN[name] for name in _SHOWN if name in (best, others[0][0]))
        return f"{size_} {pair} tie: {others[1][1] / least:.2f} x {_SHOWN[others[1][0]]}."
    ratios = [f"{time / least:.2f} x {_SHOWN[name]}" for name, time in others]
    hair = " by a hair" if others[0][1] / least < _ALIKE else ""
    return f"{size_} {_SHOWN[best]} wins{hair}: {', '.join(ratios)}."


def ranges(wins: Sequence[int], rows: Sequence[int]) -> str:
    """Returns where packed wins, of all numbers of rows that were measured.

    Example:
        >>> ranges([1, 4, 64], [1, 4, 16, 64]), ranges([1, 4], [1, 4]), ranges([], [1])
        ('1-4, 64', 'all', 'none')
    """
    if len(wins) == len(rows):
        return "all"
    spans: list[list[int]] = []
    for before, count in zip([None, *rows], rows, strict=False):
        if count in wins and before in wins:
            spans[-1] = [spans[-1][0], count]
        elif count in wins:
            spans.append([count])
    return ", ".join("-".join(map(str, span)) for span in spans) or "none"


def _choice(dense_from: int | None) -> str:
    if dense_from is None:
        return "packed"
    return f"dense from {dense_from} row{'s' if dense_from > 1 else ''}" if dense_from else "dense"


def _units(measured: Measured) -> str:
    return "milliseconds" if measured.decoded is None else "tokens a second"


def _shape(layer: MeasuredLayer) -> str:
    return "x".join(map(str, layer.speed.shape))


def _nearest(rows: int) -> int:
    """Returns the column for a number of rows; a convolution's windows are no powers of four."""
    return min(ROWS, key=lambda column: abs(math.log(rows / column)))


def _table(title: str, headers: tuple[str, ...], unit: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    for header in (*headers, f"dense {unit}", f"bf16 {unit}", f"packed {unit}", "x dense", "x bf16"):
        table.add_column(header, justify="right")
    return table


def _cells(speed: Speed, tokens: dict[str, float] | None) -> list[str]:
    shown = speed.ms if tokens is None else tokens
    marked = [f"{_figure(shown[name])}{'*' if name == speed.fastest else ''}" for name in _SHOWN]
    return [*marked, f"{speed.fp32.ratio:.2f}", f"{speed.bf16.ratio:.2f}"]


def _figure(value: float) -> str:
    """Returns three figures, and never an exponent.

    Example:
        >>> _figure(1234.5), _figure(12.34), _figure(0.01234)
        ('1234', '12.3', '0.0123')
    """
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
