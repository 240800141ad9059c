"""The view "storage": rows that were computed, as they are (Table 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nmstep.reports.paper.folder import StudyRuns
from nmstep.reports.paper.formats import NONE
from nmstep.reports.paper.shown import Shown, Table

__all__ = ["show_storage"]


def show_storage(study: StudyRuns) -> Shown:
    """Returns ``facts["rows"]``, mappings of one level, as a table.

    Args:
        study: of view "storage".
    """
    rows: list[Mapping[str, Any]] = list(study.facts.get("rows", ()))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(
        title="Sizes",
        columns=[key.replace("_", " ") for key in keys],
        rows=[[_text(row.get(key)) for key in keys] for row in rows],
    )
    return Shown(tables=[table] if rows else [], numbers={"rows": rows})


def _text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
