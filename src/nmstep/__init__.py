"""Learn N:M structured sparsity masks while a PyTorch model trains."""

from nmstep.masks import nm_mask
from nmstep.optim import AdamW
from nmstep.patterns import NMPattern
from nmstep.plan import PlanEntry, Rule, SparsityPlan, plan
from nmstep.recipes import ASP, SRSTE, STE, STEP, DecayingMask, Dense, Recipe
from nmstep.sparsify import Sparsifier, sparsify
from nmstep.switching import AutoSwitch, NormRatio, RelativeNorm, SwitchAt
from nmstep.trace import TraceOptions

__version__ = "0.1.0.dev0"

__all__ = [
    "ASP",
    "SRSTE",
    "STE",
    "STEP",
    "AdamW",
    "AutoSwitch",
    "DecayingMask",
    "Dense",
    "NMPattern",
    "NormRatio",
    "PlanEntry",
    "Recipe",
    "RelativeNorm",
    "Rule",
    "Sparsifier",
    "SparsityPlan",
    "SwitchAt",
    "TraceOptions",
    "nm_mask",
    "plan",
    "sparsify",
]
