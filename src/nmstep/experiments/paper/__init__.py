"""The STEP paper's tables and figures, as functions that return what to run."""

from nmstep.experiments.paper.catalogue import STUDIES, study
from nmstep.experiments.paper.reproduce import Reproduction, reproduce
from nmstep.experiments.paper.study import Cell, Study, run_name
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = ["STUDIES", "Cell", "Reproduction", "Scope", "Study", "Workload", "reproduce", "run_name", "study"]
