"""The inner operations of the method, fast where they can be.

:mod:`nmstep.masks` and :mod:`nmstep.optim` say in plain torch what is computed; here the same is compiled for the
processor, and in Triton for GPUs. What the kernels cannot take goes to plain torch.
"""

from nmstep.kernels.adam import adam_step_, foreseen_sums, takes_gradient, takes_state
from nmstep.kernels.masks import nm_mask, split_
from nmstep.kernels.native import Status, status
from nmstep.kernels.update import Cut, Update

__all__ = [
    "Cut",
    "Status",
    "Update",
    "adam_step_",
    "foreseen_sums",
    "nm_mask",
    "split_",
    "status",
    "takes_gradient",
]
__all__ += ["takes_state"]
