"""Learn N:M structured sparsity masks while a PyTorch model trains."""

from importlib import import_module
from typing import TYPE_CHECKING

from nmstep.kernels import nm_mask
from nmstep.optim import AdamW
from nmstep.patterns import NMPattern
from nmstep.plan import PlanEntry, Rule, SparsityPlan, plan
from nmstep.recipes import ASP, SRSTE, STE, STEP, DecayingMask, Dense, Recipe
from nmstep.sparsify import Sparsifier, sparsify
from nmstep.switching import AutoSwitch, NormRatio, RelativeNorm, SwitchAt
from nmstep.trace import TraceOptions
from nmstep.verify import NotSparseError, VerifyReport, verify

if TYPE_CHECKING:
    from nmstep.recipes import layerwise

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
    "NotSparseError",
    "PlanEntry",
    "Recipe",
    "RelativeNorm",
    "Rule",
    "Sparsifier",
    "SparsityPlan",
    "SwitchAt",
    "TraceOptions",
    "VerifyReport",
    "layerwise",
    "nm_mask",
    "plan",
    "sparsify",
    "verify",
]


def __getattr__(name: str) -> object:
    # The layer-wise search is the one room that few programs need; importing it waits until it is asked for.
    if name == "layerwise":
        return import_module("nmstep.recipes.layerwise")
    raise AttributeError(f"module 'nmstep' has no attribute {name!r}")
