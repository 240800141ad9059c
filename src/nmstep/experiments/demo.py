"""The demonstration: four recipes at 1:16 on real digits, in minutes on two cores."""

from __future__ import annotations

from nmstep.experiments.compare import CompareConfig
from nmstep.experiments.options import RecipeOptions

__all__ = ["demo_config"]


def demo_config() -> CompareConfig:
    """Returns the comparison that ``nmstep demo`` runs.

    ASP prunes a trained model, so its mask is chosen after half of the steps; all recipes train equally long.
    AutoSwitch's own window of 1,000 steps does not fit into 600, so its upper share of the steps would decide, and
    at a half would leave the masks too little time: hence the shorter window and the fifth, which is where the
    STEP paper saw it fire on CIFAR.
    """
    return CompareConfig(
        task="digits",
        recipes=("dense", "asp", "sr-ste", "step"),
        patterns=("1:16",),
        seeds=(0, 1, 2),
        steps=600,
        schedule="cosine",
        jobs=2,
        options=RecipeOptions(start=0.5, window=50, clip=(0.1, 0.2)),
    )
