"""A study's page: Markdown, its numbers as JSON, and its figures, in the study's own folder."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmstep.files import write_atomically, write_json
from nmstep.reports.extras import require
from nmstep.reports.paper.bound import show_bound
from nmstep.reports.paper.criteria import show_criteria
from nmstep.reports.paper.folder import StudyRuns, load_study
from nmstep.reports.paper.provenance import provenance
from nmstep.reports.paper.recipes import show_recipes
from nmstep.reports.paper.shares import show_shares
from nmstep.reports.paper.shown import Picture, Shown
from nmstep.reports.paper.storage import show_storage
from nmstep.reports.paper.variance import show_variance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["study_rows", "write_study"]

_VIEWS: Mapping[str, Callable[[StudyRuns], Shown]] = {
    "scores": show_recipes,
    "curves": show_recipes,
    "variance": show_variance,
    "criteria": show_criteria,
    "shares": show_shares,
    "storage": show_storage,
    "bound": show_bound,
}
_DPI = 150


def write_study(folder: str | os.PathLike[str]) -> Path:
    """Writes ``index.md``, ``results.json`` and the figures of a study; returns the page's path.

    Runs that are missing or not finished leave gaps, which the page counts.

    Args:
        folder: holds ``study.json``, beside the folder ``runs`` of all studies' runs.

    Raises:
        FileNotFoundError: there is no ``study.json``.
        ImportError: matplotlib or scipy is not installed.
        ValueError: a file of the study or of a run is malformed; the message names it.
    """
    study = load_study(folder)
    shown = _show(study)
    origin = provenance(study)
    pictures = [picture for picture in shown.pictures if _draw(picture, study.folder)]
    write_json(study.folder / "results.json", _json(_record(study, shown, origin)))
    page = study.folder / "index.md"
    write_atomically(page, _page(study, shown, origin, pictures).encode("utf-8"))
    return page


def study_rows(folder: str | os.PathLike[str]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns the tables of a study's page as text: title, headers and rows of each.

    Args:
        folder: as for :func:`write_study`.

    Raises:
        FileNotFoundError: there is no ``study.json``.
        ImportError: scipy is not installed.
        ValueError: a file of the study or of a run is malformed; the message names it.
    """
    tables = _show(load_study(folder)).tables
    return [(t.title, list(t.columns), [list(row) for row in t.rows]) for t in tables]


def _show(study: StudyRuns) -> Shown:
    if study.view not in _VIEWS:
        expected = ", ".join(_VIEWS)
        raise ValueError(f"{study.folder / 'study.json'}: view {study.view!r} is none of {expected}")
    return _VIEWS[study.view](study)


def _record(study: StudyRuns, shown: Shown, origin: Mapping[str, Any]) -> dict[str, Any]:
    verdict = shown.verdict
    return {
        **{key: getattr(study, key) for key in ("name", "title", "claim", "view")},
        "verdict": None if verdict is None else {"held": verdict.held, "why": verdict.why},
        "runs": {"planned": study.planned, "done": study.done},
        "origin": origin,
        **shown.numbers,
    }


def _json(value: Any) -> Any:
    """Returns JSON values: numbers that are not finite as text, since JSON has none."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _draw(picture: Picture, folder: Path) -> bool:
    """Writes the figure and returns whether there is one; one of an earlier state is removed."""
    figure = picture.draw()
    path = folder / picture.file
    if figure is None:
        path.unlink(missing_ok=True)
        return False
    write_atomically(path, _png(figure))
    return True


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.set_dpi(_DPI)
    # Without the version in it, the same numbers give the same file.
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).print_png(
        buffer, metadata={"Software": None}
    )
    return buffer.getvalue()


def _page(study: StudyRuns, shown: Shown, origin: Mapping[str, list[str]], pictures: list[Picture]) -> str:
    parts = [f"# {study.name}: {study.title}", f"The paper: {study.claim}"]
    missing = study.planned - study.done
    if shown.verdict is not None:
        parts.append(("So far: " if missing else "") + shown.verdict.text)
    if missing:
        are = "run is" if missing == 1 else "runs are"
        parts.append(f"**{missing} of {study.planned} {are} missing or not finished.**")
    parts += [f"![{study.title}]({picture.file})\n\n{picture.caption}" for picture in pictures[:1]]
    parts += [table.markdown() for table in shown.tables]
    parts += [f"![{study.title}]({picture.file})\n\n{picture.caption}" for picture in pictures[1:]]
    notes = [*study.notes, *shown.remarks]
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
    parts.append(_origin(origin))
    return "\n\n".join(parts) + "\n"


def _origin(origin: Mapping[str, list[str]]) -> str:
    lines = ["## How it was run", ""]
    for heading, texts in origin.items():
        quoted = [f"`{text}`" for text in texts] if heading in ("command", "runs started by") else texts
        if len(quoted) == 1:
            lines.append(f"- {heading}: {quoted[0]}")
        elif quoted:
            lines += [f"- {heading}:", *(f"  - {text}" for text in quoted)]
    return "\n".join(lines)
