"""Which N:M weights TensorRT's sparse kernels can take."""

from __future__ import annotations

from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import SparsityPlan

__all__ = ["fits_tensorrt", "weights_for_tensorrt"]


def fits_tensorrt(pattern: NMPattern) -> bool:
    """Whether every weight with this pattern is 2:4 too, which is what those kernels take.

    Example:
        >>> patterns = map(NMPattern.parse, ("1:2", "2:4", "1:4", "1:16", "2:8", "4:8", "2:3"))
        >>> [str(pattern) for pattern in patterns if fits_tensorrt(pattern)]
        ['1:2', '2:4', '1:4', '1:16', '2:8']
    """
    if pattern.m % 4 == 0:
        return pattern.n <= 2
    return 4 % pattern.m == 0 and pattern.n * 4 <= 2 * pattern.m


def weights_for_tensorrt(plan: SparsityPlan) -> tuple[str, ...]:
    """Returns the names of a plan's sparse weights whose pattern TensorRT's sparse kernels take."""
    return tuple(entry.name for entry in plan.sparse if entry.pattern and fits_tensorrt(entry.pattern))
