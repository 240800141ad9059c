"""What a saved checkpoint says of itself: checked to be N:M, and named so in its config.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nmstep.files import read_json, write_json
from nmstep.patterns import NMPattern
from nmstep.sparsify import Sparsifier
from nmstep.sparsity_plan import SparsityPlan
from nmstep.verify import NotSparseError, VerifyReport, verify
from nmstep.verify.stored import NM_SPARSITY

__all__ = ["mark_config", "mark_folder", "on_all_ranks", "patterns_in_force", "plan_in_force"]
__all__ += ["unmark_folder"]


def on_all_ranks(sparsifier: Sparsifier, look: Callable[[], bool | None]) -> bool:
    """Calls ``look`` on all ranks that train the sparsifier's model together; all of them are to call this.

    Returns:
        Whether ``look`` returned True on any rank.

    Raises:
        Exception: ``look`` raised on some rank; then on all of them, with the same message, so that none waits for
            one that is gone.
    """
    return bool(sparsifier.ranks.worst(lambda: int(look() is True), kinds=(NotSparseError,)))


def plan_in_force(sparsifier: Sparsifier) -> SparsityPlan:
    """Returns the plan with the patterns that the weights have now, which a schedule may still tighten.

    Example:
        >>> import torch, nmstep
        >>> model = torch.nn.Linear(8, 4)
        >>> recipe = nmstep.DecayingMask("1:8", dense_steps=0, interval=10)
        >>> sparsifier = nmstep.sparsify(model, nmstep.AdamW(model.parameters()), recipe)
        >>> [str(entry.pattern) for entry in plan_in_force(sparsifier).sparse]
        ['7:8']
    """
    return SparsityPlan(
        tuple(
            entry if entry.pattern is None else replace(entry, pattern=sparsifier.pattern_of(entry))
            for entry in sparsifier.plan.entries
        )
    )


def patterns_in_force(sparsifier: Sparsifier) -> list[NMPattern] | None:
    """Returns the patterns that the sparse weights have now, or None where they have none yet; quick to ask."""
    if sparsifier.phase != "sparse" or not sparsifier.plan.sparse:
        return None
    return [sparsifier.pattern_of(entry) for entry in sparsifier.plan.sparse]


def mark_folder(folder: Path, plan: SparsityPlan) -> VerifyReport:
    """Verifies a saved model and writes ``nm_sparsity`` into its config.json, which is made if there is none.

    Args:
        folder: as ``save_pretrained`` writes it.
        plan: what the weights must comply with.

    Returns:
        What was found.

    Raises:
        NotSparseError: a planned weight is not N:M, or not in the files under its name; the entry is taken out.
        FileNotFoundError: the folder has no weights.
        ValueError: its files cannot be read.
    """
    report = verify(folder, plan=plan)
    if not report.ok:
        unmark_folder(folder)  # the model's own configuration may have put it there
    report.raise_if_failed()
    config = folder / "config.json"
    values = read_json(config) if config.is_file() else {}
    entry = plan.to_dict()
    if values.get(NM_SPARSITY) != entry:
        write_json(config, {**values, NM_SPARSITY: entry})
    return report


def unmark_folder(folder: Path) -> None:
    """Takes ``nm_sparsity`` out of a saved model's config.json, where there is one that has it."""
    config = folder / "config.json"
    values = read_json(config) if config.is_file() else {}
    if values.pop(NM_SPARSITY, None) is not None:
        write_json(config, values)


def mark_config(model: Any, plan: SparsityPlan | None) -> None:
    """Sets ``nm_sparsity`` in the configuration of a model of transformers, which is saved with it.

    Args:
        model: any; one without such a configuration is left alone.
        plan: what the weights comply with. None for nothing, also where an earlier run left an entry.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return
    if plan is not None:
        setattr(config, NM_SPARSITY, plan.to_dict())
    elif hasattr(config, NM_SPARSITY):
        delattr(config, NM_SPARSITY)
