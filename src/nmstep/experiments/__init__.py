"""Training runs as values: a configuration in, a run folder out, resumable at any moment."""

from nmstep.experiments.compare import CompareConfig, Comparison, compare
from nmstep.experiments.config import RunConfig, TrainingConfig
from nmstep.experiments.demo import demo_config
from nmstep.experiments.options import RECIPES, RecipeOptions
from nmstep.experiments.pool import Outcome, PoolProgress
from nmstep.experiments.progress import Progress, Status
from nmstep.experiments.runner import run
from nmstep.experiments.training import load_task, make_plan, recipe_of
from nmstep.experiments.tune import Point, Tuning, tune
from nmstep.experiments.tune_config import TuneConfig

__all__ = [
    "RECIPES",
    "CompareConfig",
    "Comparison",
    "Outcome",
    "Point",
    "PoolProgress",
    "Progress",
    "RecipeOptions",
    "RunConfig",
    "Status",
    "TrainingConfig",
    "TuneConfig",
    "Tuning",
    "compare",
    "demo_config",
    "load_task",
    "make_plan",
    "recipe_of",
    "run",
    "tune",
]
