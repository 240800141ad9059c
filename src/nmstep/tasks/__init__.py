"""Workloads to train and score: images, language models, sentence understanding and translation.

`load` returns a `Task`: a model, batches that depend on nothing but seed and step, a loss and a score.
"digits" and "text" come with their data; every task reads local folders without the network.
"""

from nmstep.tasks.registry import available, load, options
from nmstep.tasks.task import Batch, Schedule, Task, TaskDefaults

__all__ = ["Batch", "Schedule", "Task", "TaskDefaults", "available", "load", "options"]
