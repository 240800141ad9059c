"""The inner operations of the method, fast where they can be.

:mod:`nmstep.masks` and :mod:`nmstep.optim` say in plain torch what is computed; here the same is compiled for the
processor. What the kernels cannot take goes to plain torch.
"""

from nmstep.kernels.adam import Cut, adam_step_, takes_step
from nmstep.kernels.masks import nm_mask, split_
from nmstep.kernels.native import Status, status

__all__ = ["Cut", "Status", "adam_step_", "nm_mask", "split_", "status", "takes_step"]
