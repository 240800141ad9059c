"""Translation: German to English."""

from __future__ import annotations

from typing import Any

from nmstep.experiments.options import RecipeOptions
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = ["translation"]

_SMALL = {
    "layers": 3,
    "width": 192,
    "heads": 4,
    "feed_forward": 768,
    "vocabulary": 4000,
    "pre_norm": True,
}


def translation(scope: Scope) -> Workload:
    """Returns WMT17 with the base Transformer, or image captions (Multi30k) with a small one on two cores."""
    settings: dict[str, Any] = {"task": "wmt17-de-en", "device": scope.device, "precision": "bf16"}
    if scope.scale == "full":
        settings |= {"data": scope.place("wmt17", "wmt/wmt17")}
    else:
        settings |= {
            "data": scope.place("multi30k", "wmt/wmt17"),
            "task_options": {**_SMALL, "test": "test_2016_flickr", "test_subset": 500, "beam": 1},
            "steps": 700,
            "batch_size": 64,
            "lr": 2e-3,
            "warmup": 140,
            "schedule": "linear",
            "eval_every": 175,
            "checkpoint_every": 175,
            "threads": 1,
        }
    return Workload(
        name="wmt17-de-en",
        title="German to English",
        settings=settings,
        seeds=scope.seeds or ((0,) if scope.scale == "full" else (0, 1, 2)),
        patterns=("1:4", "1:8") if scope.scale == "full" else ("1:8",),
        options={"step": RecipeOptions(window=50, clip=(0.1, 0.2))} if scope.scale == "cpu" else {},
    )
