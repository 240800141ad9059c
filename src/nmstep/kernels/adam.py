"""Adam's step by the kernels: dense, or on latent weights with the choice of the mask in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nmstep.kernels.native import are_taken, engine_for, kernels, ordinary
from nmstep.kernels.update import Update

__all__ = ["adam_step_", "takes_step"]


def takes_step(p: Tensor, grad: Tensor, *states: Tensor) -> bool:
    """Whether the kernels can step a parameter.

    Args:
        p: the parameter: float32 or bfloat16 (on a GPU float16 too), of any shape, in memory without gaps.
        grad: its gradient, of the same shape and dtype and any strides.
        states: its moments and its pruned part, as far as they are there yet, in memory as ``p`` is.
    """
    return (
        are_taken(p, *states)
        and ordinary(grad)
        and grad.device == p.device
        and grad.dtype == p.dtype
        and grad.shape == p.shape
    )


def adam_step_(updates: Sequence[Update], *, sums: bool = False) -> Tensor | None:
    """Takes one step of Adam on parameters that :func:`takes_step` accepts.

    With a cut, the step is taken on the latent ``w = p + pruned``, whose new mask is chosen and which is split
    again, all in one pass over memory. The arithmetic is fp32, rounded once where a value is stored. Nothing
    waits for a GPU.

    Args:
        updates: one for each parameter.
        sums: return sums over the second moments.

    Returns:
        With ``sums``, ``[Σ|v_t − v_{t−1}|, Σ v_t, Σ v_t²]`` over all coordinates in float64, on the device of the
        first parameter; else None.

    Raises:
        ValueError: the tensors do not fit together.

    Source:
        STEP, Alg. 1 lines 5 to 10 and 13 to 20; SR-STE, Eq. 9.
    """
    ours = [u for u in updates if engine_for(u.p.device) == "compiled"]
    found = [_compiled_step_(ours, sums)] if ours else []
    if len(ours) < len(updates):
        from nmstep.kernels.gpu.adam import triton_step_  # loads Triton

        found += triton_step_([u for u in updates if engine_for(u.p.device) == "triton"], sums)
    torch.autograd.graph.increment_version([tensor for u in updates for tensor in u.written()])
    if not sums:
        return None
    device = updates[0].p.device if updates else torch.device("cpu")
    rows = [row.to(device, non_blocking=True) for row in found]
    return torch.stack(rows).sum(0) if rows else torch.zeros(3, dtype=torch.float64)


def _compiled_step_(updates: Sequence[Update], sums: bool) -> Tensor:
    module, threads = kernels(), torch.get_num_threads()
    assert module is not None
    settings: dict[tuple[object, ...], Any] = {}  # shared by many parameters
    total = [0.0, 0.0, 0.0]
    for u in updates:
        if u.key not in settings:
            settings[u.key] = module.Adam(frozen=u.frozen_eps_root is not None, **u.numbers())
        tensors = (u.gradient(), u.exp_avg, u.exp_avg_sq)
        if u.cut is None:
            found = module.dense_step(u.p.detach(), *tensors, settings[u.key], threads, sums)
        else:
            lies = module.Layout(*u.lies())
            found = module.sparse_step(
                u.p.detach(), u.cut.pruned, *tensors, lies, settings[u.key], threads, sums
            )
        total = [a + b for a, b in zip(total, found or (), strict=True)] if sums else total
    return torch.tensor(total, dtype=torch.float64)
