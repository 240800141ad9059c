"""The report: one HTML page that needs no other file, and the plots as PNG files beside it."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmstep.reports import facts, plots
from nmstep.reports.extras import require
from nmstep.reports.groups import recipe_label
from nmstep.reports.plots.scales import metric_label
from nmstep.reports.runs import Run, load_runs
from nmstep.reports.summary import gap_table, summary_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

_CSS_PIXELS_PER_INCH = 100


@dataclass(frozen=True)
class _Plot:
    file: str
    title: str
    caption: str
    draw: Callable[[Sequence[Run]], Figure | None]


_PLOTS = (
    _Plot(
        "final.png",
        "Final result by pattern and recipe",
        "Means with ± one standard deviation over seeds; small dots are the single runs.",
        plots.plot_final_metric,
    ),
    _Plot(
        "metric.png",
        "Training, by recipe",
        "Means over seeds with a band of ± one standard deviation; dotted while training is still dense "
        "but evaluated under the mask. Accuracy near 100 % is spread out: equal distances are equal ratios of "
        "errors. Upright lines: the masks start.",
        plots.plot_metric,
    ),
    _Plot(
        "variance.png",
        "Adam's second moment",
        "The norm of v, geometric mean over seeds. STEP's line ends where the variance is frozen.",
        plots.plot_variance_norm,
    ),
    _Plot(
        "switch.png",
        "What the switch saw",
        "Z is the mean change of v a weight in one step. The masks start when its mean over a full window "
        "falls below the threshold, or at the latest step allowed; until the window is full, the line is the "
        "mean of what it holds.",
        plots.plot_switch,
    ),
    _Plot(
        "flips.png",
        "Changes of the masks, by layer",
        "The share of each layer's mask entries that changed in a sampled step, mean over seeds.",
        plots.plot_flip_rate,
    ),
)


def write_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes ``report.html`` and ``plots/*.png`` about the runs below a folder; returns the page's path.

    The page holds everything it shows and loads nothing. Each file is replaced as a whole, so a reader
    never sees half of one.

    Args:
        folder: a run folder, or any folder above run folders.
        out: where the page goes: a file ending in ``.html``, or a folder; ``folder`` itself by default.
            The plots go into ``plots/`` beside it.

    Raises:
        FileNotFoundError: there is no run in ``folder``.
        ImportError: matplotlib or jinja2 is not installed.
        ValueError: a file of a run is malformed; the message names it.
    """
    runs = load_runs(folder)
    target = Path(folder if out is None else out)
    page = target if target.suffix in (".html", ".htm") else target / "report.html"
    drawn = []
    for plot in _PLOTS:
        figure = plot.draw(runs)
        if figure is not None:
            png = _png(figure)
            _write(page.parent / "plots" / plot.file, png)
            drawn.append(_embedded(plot, figure, png))
    _write(page, _render(runs, drawn, Path(folder)).encode("utf-8"))
    return page


def _render(runs: Sequence[Run], drawn: Sequence[dict[str, Any]], folder: Path) -> str:
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nmstep.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = summary_table(runs)
    text = environment.get_template("report.html").render(
        title=_title(runs),
        folder=folder.resolve().name,
        runs=runs,
        finished=sum(run.finished for run in runs),
        problems=facts.run_problems(runs),
        settings=facts.settings(runs),
        rows=facts.result_rows(rows),
        metric=metric_label(rows[0]["metric"])
        if len({row["metric"] for row in rows}) == 1
        else "held-out metric",
        several_tasks=len({run.task for run in runs}) > 1,
        sentences=facts.gap_sentences(gap_table(rows)),
        plots=drawn,
        plans=facts.plan_tables(runs),
        commands=_distinct(runs, "command"),
        commits=_distinct(runs, "commit"),
    )
    return str(text)


def _title(runs: Sequence[Run]) -> str:
    tasks = ", ".join(dict.fromkeys(run.task for run in runs))
    recipes = list(dict.fromkeys(recipe_label(run.recipe) for run in runs))
    return f"{tasks}: {recipes[0]}" if len(recipes) == 1 else f"{tasks}: {len(recipes)} recipes compared"


def _distinct(runs: Sequence[Run], key: str) -> list[str]:
    return [str(value) for value in dict.fromkeys(run.environment.get(key) for run in runs) if value]


def _embedded(plot: _Plot, figure: Figure, png: bytes) -> dict[str, Any]:
    width, height = (round(inches * _CSS_PIXELS_PER_INCH) for inches in figure.get_size_inches())
    return {
        "file": plot.file,
        "title": plot.title,
        "caption": plot.caption,
        "width": width,
        "height": height,
        "data": base64.b64encode(png).decode("ascii"),
    }


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content`` at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
