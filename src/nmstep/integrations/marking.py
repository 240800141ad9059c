"""What a saved checkpoint says of itself: checked to be N:M, and named so in its config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nmstep.files import read_json, write_json
from nmstep.sparsify import Sparsifier
from nmstep.sparsity_plan import SparsityPlan
from nmstep.verify import VerifyReport, verify
from nmstep.verify.stored import NM_SPARSITY

__all__ = ["mark_folder", "plan_in_force"]


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


def mark_folder(folder: Path, plan: SparsityPlan) -> VerifyReport:
    """Verifies a saved model and writes ``nm_sparsity`` into its config.json, which is made if there is none.

    Args:
        folder: as ``save_pretrained`` writes it.
        plan: what the weights must comply with.

    Returns:
        What was found.

    Raises:
        NotSparseError: a planned weight is not N:M, or not in the files under its name.
        FileNotFoundError: the folder has no weights.
        ValueError: its files cannot be read.
    """
    report = verify(folder, plan=plan)
    report.raise_if_failed()
    config = folder / "config.json"
    values = read_json(config) if config.is_file() else {}
    entry = plan.to_dict()
    if values.get(NM_SPARSITY) != entry:
        write_json(config, {**values, NM_SPARSITY: entry})
    return report
