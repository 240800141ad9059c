"""Adam's step by the compiled kernels: dense, or on latent weights with the choice of the mask in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmstep.kernels.native import are_taken, kernels, layout, ordinary, same_order
from nmstep.patterns import NMPattern

__all__ = ["Cut", "adam_step_", "takes_step"]

Sums = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What the step of a sparse parameter needs besides Adam's own state.

    Args:
        pruned: what the mask cut away, of the parameter's shape and dtype; takes what the new mask cuts away.
        pattern: N kept of M, from this step on.
        dim: the dimension that groups run along.
        refine: λ of SR-STE.
    """

    pruned: Tensor
    pattern: NMPattern
    dim: int
    refine: float = 0.0


def takes_step(p: Tensor, grad: Tensor, *states: Tensor) -> bool:
    """Whether the kernels can step a parameter.

    Args:
        p: the parameter: float32 or bfloat16, of any shape, in memory without gaps.
        grad: its gradient, of the same shape and dtype and any strides.
        states: its moments and its pruned part, as far as they are there yet, in memory as ``p`` is.
    """
    return are_taken(p, *states) and ordinary(grad) and grad.dtype == p.dtype and grad.shape == p.shape


def adam_step_(
    group: Mapping[str, Any],
    p: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: float,
    frozen_eps_root: float | None = None,
    cut: Cut | None = None,
    sums: bool = False,
) -> Sums | None:
    """Takes one step of Adam on a parameter that :func:`takes_step` accepts.

    With ``cut``, the step is taken on the latent ``w = p + pruned``, whose new mask is chosen and which is split
    again, all in one pass over memory. The arithmetic is fp32, rounded once where a value is stored.

    Args:
        group: of the optimizer: lr, betas, eps, eps_root, weight_decay, maximize, decoupled_weight_decay.
        p: the parameter, float32 or bfloat16 of any shape; is stepped.
        grad: its gradient, of the same shape and dtype.
        exp_avg: first moment, likewise; is updated.
        exp_avg_sq: second moment, likewise; is updated unless it is frozen.
        step: this step's number, from 1.
        frozen_eps_root: the floor inside the root where ``exp_avg_sq`` holds the frozen v*, or None.
        cut: of a sparse parameter.
        sums: return sums over the second moment.

    Returns:
        With ``sums``, ``(Σ|v_t − v_{t−1}|, Σ v_t, Σ v_t²)``; else None.

    Raises:
        ValueError: the tensors do not fit together.

    Source:
        STEP, Alg. 1 lines 5 to 10 and 13 to 20; SR-STE, Eq. 9.
    """
    module = kernels()
    assert module is not None
    adam = _settings(group, step, frozen_eps_root, 0.0 if cut is None else cut.refine)
    threads = torch.get_num_threads()
    if not same_order(grad, p):
        grad = torch.empty_like(p).copy_(grad)
    if cut is None:
        result = module.dense_step(p.detach(), grad.detach(), exp_avg, exp_avg_sq, adam, threads, sums)
        written = [p, exp_avg, exp_avg_sq]
    else:
        lies = layout(p, cut.pattern, cut.dim)
        result = module.sparse_step(
            p.detach(), cut.pruned, grad.detach(), exp_avg, exp_avg_sq, lies, adam, threads, sums
        )
        written = [p, cut.pruned, exp_avg, exp_avg_sq]
    torch.autograd.graph.increment_version(written)
    return None if result is None else tuple(result)


def _settings(group: Mapping[str, Any], step: float, frozen_eps_root: float | None, refine: float) -> Any:
    """Returns the numbers of one step as the kernels take them, computed in float64."""
    module = kernels()
    assert module is not None
    beta1, beta2 = (float(beta) for beta in group["betas"])
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    decoupled = group["decoupled_weight_decay"]
    frozen = frozen_eps_root is not None
    correction2 = 1 - beta2**step
    return module.Adam(
        maximize=bool(group["maximize"]),
        refine=refine,
        coupled=0.0 if decoupled else decay,
        decay=1 - lr * decay if decoupled else 1.0,
        beta1=beta1,
        beta2=beta2,
        step_size=lr / (1 - beta1**step),
        eps=group["eps"],
        eps_root=frozen_eps_root if frozen else group["eps_root"],
        correction2=correction2,
        sqrt_correction2=math.sqrt(correction2),
        frozen=frozen,
    )
