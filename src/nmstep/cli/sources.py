"""What a path given to a command holds: a run, dense or not, or a model of transformers that has no plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nmstep.bench.loading import found_plan, is_of_transformers
from nmstep.cli.console import say
from nmstep.cli.tables import counts
from nmstep.files import read_json
from nmstep.sparsity_plan import SparsityPlan
from nmstep.verify.files import open_path

__all__ = ["is_run", "plan_in_zeros", "refuse_dense"]


def is_run(path: Path) -> bool:
    """Whether a path is a run folder, and not the folder of another program that has a config.json too."""
    return {"task", "recipe"} <= set(_config(path))


def refuse_dense(path: Path, doing: str) -> None:
    """Raises ValueError if a path is a run whose recipe is dense, or lies in the folder of one.

    Args:
        path: that a command was given.
        doing: what the command does, as in ``"pack"``.
    """
    folder = path if path.is_dir() else path.parent
    if is_run(folder) and _config(folder)["recipe"] == "dense":
        raise ValueError(
            f"the run in {str(folder)!r} is dense, as its recipe says: there is nothing to {doing}. Give one of "
            f"another recipe, or train one: nmstep train --recipe step"
        )


def plan_in_zeros(path: Path) -> SparsityPlan | None:
    """Returns the plan that the zeros of a folder of transformers show, and says so; None for whatever has a plan.

    Raises:
        ValueError: no layer is sparse, or the model's class is not of transformers.
        ImportError: transformers is not installed.
    """
    if not path.is_dir() or not is_of_transformers(_config(path)):
        return None
    if isinstance(open_path(path).promise, SparsityPlan):
        return None
    plan = found_plan(path)
    dense = sum(entry.pattern is None and len(entry.shape) > 1 for entry in plan.entries)
    found = counts(str(entry.pattern) for entry in plan.sparse)
    say(f"No plan in {str(path)!r}; its zeros show {found}, and {dense} matrices dense")
    return plan


def _config(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    return read_json(config) if config.is_file() else {}
