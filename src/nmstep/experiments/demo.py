"""The demonstration: four recipes at 1:16 on real digits, in minutes on two cores."""

from __future__ import annotations

from nmstep.experiments.compare import CompareConfig
from nmstep.experiments.options import RecipeOptions

__all__ = ["demo_config"]


def demo_config() -> CompareConfig:
    """Returns the comparison that ``nmstep demo`` runs.

    ASP prunes a trained model, so its mask is chosen after half of the steps; all recipes train equally long.
    """
    return CompareConfig(
        task="digits",
        recipes=("dense", "asp", "sr-ste", "step"),
        patterns=("1:16",),
        seeds=(0, 1, 2),
        steps=3000,
        jobs=2,
        options=RecipeOptions(start=0.5),
    )
