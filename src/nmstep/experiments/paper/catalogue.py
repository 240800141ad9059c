"""The studies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nmstep.experiments.paper import figures, tables
from nmstep.experiments.paper.study import Study
from nmstep.experiments.paper.workloads import Scope
from nmstep.names import did_you_mean

__all__ = ["STUDIES", "study"]

STUDIES: Mapping[str, Callable[[Scope], Study]] = {
    **{f"table{i}": getattr(tables, f"table{i}") for i in range(1, 6)},
    **{f"fig{i}": getattr(figures, f"fig{i}") for i in range(1, 9)},
    "theorem1": tables.theorem1,
}


def study(name: str, scope: Scope) -> Study:
    """Returns a table or figure of the paper as runs.

    Args:
        name: a key of ``STUDIES``.
        scope: what was chosen for all workloads.

    Raises:
        ValueError: there is no such study, or ``scope.only`` leaves nothing of it.
    """
    if name not in STUDIES:
        raise ValueError(f"there is no table or figure {name!r}: {did_you_mean(name, STUDIES)}")
    found = STUDIES[name](scope)
    if not found.cells and not found.before and not found.facts:
        raise ValueError(f"{name} has none of the workloads {list(scope.only or ())}")
    return found
