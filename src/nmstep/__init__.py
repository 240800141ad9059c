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
    from nmstep.deploy import export_dense, export_onnx, load_packed, pack, save_packed, unpack
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
    "export_dense",
    "export_onnx",
    "layerwise",
    "load_packed",
    "nm_mask",
    "pack",
    "plan",
    "save_packed",
    "sparsify",
    "unpack",
    "verify",
]

# What few programs need is imported when it is asked for.
_LATER = {
    "layerwise": "nmstep.recipes.layerwise",
    **dict.fromkeys(
        ("export_dense", "export_onnx", "load_packed", "pack", "save_packed", "unpack"), "nmstep.deploy"
    ),
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'nmstep' has no attribute {name!r}")
    module = import_module(_LATER[name])
    return module if name == "layerwise" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
