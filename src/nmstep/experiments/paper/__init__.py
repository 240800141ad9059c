"""The STEP paper's tables and figures, as functions that return what to run."""

from nmstep.experiments.paper.catalogue import STUDIES, study
from nmstep.experiments.paper.inventory import Inventory, check_scope, take_inventory, workload_names
from nmstep.experiments.paper.reproduce import Reproduction, reproduce
from nmstep.experiments.paper.study import Cell, Study, run_name
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = [
    "STUDIES",
    "Cell",
    "Inventory",
    "Reproduction",
    "Scope",
    "Study",
    "Workload",
    "check_scope",
    "reproduce",
    "run_name",
    "study",
    "take_inventory",
    "workload_names",
]
