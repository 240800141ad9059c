"""Translation: German to English."""

from __future__ import annotations

from typing import Any

from nmstep.experiments.options import RecipeOptions
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = ["translation"]


def translation(scope: Scope) -> Workload:
    """Returns WMT17 with the base Transformer, or image captions (Multi30k) with a small one on two cores."""
    settings: dict[str, Any] = {"task": "wmt17-de-en", "device": scope.device}
    if scope.scale == "full":
        settings |= {"data": scope.place("wmt17", "wmt/wmt17"), "steps": 100_000, "precision": "bf16"}
        seeds: tuple[int, ...] = (0,)
    else:
        settings |= {"data": scope.place("multi30k", "wmt/wmt17"), "steps": 1500, "threads": 1}
        seeds = (0, 1, 2)
    return Workload(
        name="wmt17-de-en",
        title="German to English",
        settings=settings,
        seeds=scope.seeds or seeds,
        patterns=("1:4", "1:8"),
        options={"step": RecipeOptions()},
    )
