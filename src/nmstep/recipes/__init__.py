"""The literature as data: every recipe is a choice of switch, schedule, mask policy, refinement and variance."""

from nmstep.recipes.presets import ASP, SRSTE, STE, STEP, DecayingMask, Dense
from nmstep.recipes.recipe import Recipe

__all__ = ["ASP", "SRSTE", "STE", "STEP", "DecayingMask", "Dense", "Recipe"]
