"""Adam's step by the kernels: dense, or on latent weights with the choice of the mask in one pass."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nmstep.kernels.native import are_taken, engine_for, is_like, kernels, ordinary
from nmstep.kernels.update import Update

if TYPE_CHECKING:
    from nmstep.kernels.gpu.tables import Tables

__all__ = ["adam_step_", "foreseen_sums", "takes_gradient", "takes_state"]

# The compiled kernels' number for a pair of dtypes: of the parameter, and of its second moment.
_KINDS = {
    (torch.float32, torch.float32): 0,
    (torch.float32, torch.bfloat16): 1,
    (torch.bfloat16, torch.bfloat16): 2,
}


def takes_gradient(p: Tensor, grad: Tensor) -> bool:
    """Whether the kernels can step a parameter that they take with this gradient, of any strides."""
    return ordinary(grad) and grad.dtype == p.dtype and grad.shape == p.shape and grad.device == p.device


def takes_state(p: Tensor, *states: Tensor, exp_avg_sq: Tensor | None = None, frozen: bool = False) -> bool:
    """Whether the kernels can step a parameter with such a state.

    Args:
        p: the parameter: float32 or bfloat16 (on a GPU float16 too), of any shape, in memory without gaps.
        states: its first moment and its pruned part, as far as they are there yet, of the same kind as ``p``.
        exp_avg_sq: its second moment, likewise; where it is frozen it may be bfloat16.
        frozen: whether it is.
    """
    if not are_taken(p, *states):
        return False
    if exp_avg_sq is None or is_like(exp_avg_sq, p):
        return True
    return frozen and is_like(exp_avg_sq, p, torch.bfloat16)


def adam_step_(
    updates: Sequence[Update], *, sums: bool = False, tables: Tables | None = None
) -> Tensor | None:
    """Takes one step of Adam on parameters that :func:`takes_state` and :func:`takes_gradient` accept.

    With a cut, the step is taken on the latent ``w = p + pruned``, whose new mask is chosen and which is split
    again, all in one pass over memory. The arithmetic is fp32, rounded once where a value is stored. Nothing
    waits for a GPU.

    Args:
        updates: one for each parameter.
        sums: return sums over the second moments.
        tables: what a GPU's kernels read besides; of an optimizer whose steps are counted on the device.

    Returns:
        With ``sums``, ``[Σ|v_t − v_{t−1}|, Σ v_t, Σ v_t²]`` over all coordinates in float64, on a parameter's
        device, a GPU's if there is one; else None.

    Raises:
        ValueError: the tensors do not fit together.

    Source:
        STEP, Alg. 1 lines 5 to 10 and 13 to 20; SR-STE, Eq. 9.
    """
    ours = [u for u in updates if engine_for(u.p.device) == "compiled"]
    compiled = _compiled_step_(ours, sums) if ours else None
    found = [] if compiled is None else [compiled]
    if len(ours) < len(updates):
        from nmstep.kernels.gpu.adam import triton_step_  # loads Triton

        found += triton_step_([u for u in updates if engine_for(u.p.device) == "triton"], sums, tables)
    torch.autograd.graph.increment_version([tensor for u in updates for tensor in u.written()])
    if not sums:
        return None
    if len(found) == 1:
        return found[0]
    # Towards a GPU, where there is one: the other way the host would have to wait.
    device = next((row.device for row in found if row.device.type != "cpu"), torch.device("cpu"))
    rows = [row.to(device, non_blocking=True) for row in found]
    return torch.stack(rows).sum(0) if rows else torch.zeros(3, dtype=torch.float64)


def foreseen_sums(updates: Sequence[Update]) -> Tensor | None:
    """Returns the sums of :func:`adam_step_` for dense steps that somebody else will take; nothing is written.

    Args:
        updates: one for each parameter that is to be stepped.

    Returns:
        The three sums in float64 on the CPU; None where there are no compiled kernels for all of them, a variance
        is frozen, or weight decay enters the gradients.
    """
    if not all(engine_for(u.p.device) == "compiled" and u.can_be_foreseen for u in updates):
        return None
    return _compiled_step_(updates, sums=True, foresees=True)


def _compiled_step_(updates: Sequence[Update], sums: bool, *, foresees: bool = False) -> Tensor | None:
    module = kernels()
    assert module is not None
    settings: dict[tuple[object, ...], tuple[int, Any]] = {}  # shared by many parameters
    rows = array("q")
    tensors = [u.tensors() for u in updates]  # copies of gradients among them, which must outlive the step
    for u, own in zip(updates, tensors, strict=True):
        if u.key not in settings:
            settings[u.key] = (
                len(settings),
                module.Adam(frozen=u.frozen_eps_root is not None, foresees=foresees, **u.numbers()),
            )
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in own]
        rows.extend((*addresses, *u.lies(), _KINDS[u.p.dtype, u.exp_avg_sq.dtype], settings[u.key][0]))
    adams = [adam for _, adam in settings.values()]
    found = module.step(rows.tobytes(), adams, torch.get_num_threads(), sums)
    return torch.tensor(found, dtype=torch.float64) if sums else None
