"""The sums over the variance of one step, in whichever way is the cheapest for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.optim.adamw import AdamW
from nmstep.optim.variance import change_sums, norm_sums
from nmstep.ranks import Ranks

__all__ = ["StepSums"]


class StepSums:
    """What one step does to the variance.

    Args:
        optimizer: of the Adam family.
        geometric: whether the geometric mean of the change is wanted too, which only plain torch sums up.
        ranks: who holds the model together; the sums run over all that they hold.
    """

    def __init__(self, optimizer: Optimizer, *, geometric: bool, ranks: Ranks) -> None:
        self._optimizer = optimizer
        self._ranks = ranks
        self.geometric = geometric
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._change: Tensor | None = None
        self._foreseen: Tensor | None = None
        self._gradients: list[tuple[int, int]] = []

    def before(self) -> None:
        """Sums up what the optimizer will do, before it does: all of it by the kernels, or the change by torch."""
        if isinstance(self._optimizer, AdamW) and not self.geometric:
            self._foreseen = self._optimizer.kernels.foresee(self._optimizer)
            self._gradients = self._marks()
        if self._foreseen is None:
            self._change = change_sums(self._optimizer, geometric=self.geometric, ranks=self._ranks.size)

    def after(self) -> Tensor | None:
        """Returns [Σ|Δv|, Σ log|Δv|, changed, ‖v‖₁, ‖v‖₂²] of the step, or None where nobody asked for them.

        Every rank gets the same numbers, to the bit, whatever kind of step each has taken.
        """
        share = self.share()
        return None if share is None else self._ranks.sum(share)

    def share(self) -> Tensor | None:
        """Returns this rank's share of :meth:`after`, for whoever sums up the ranks' later."""
        taken = self._foreseen
        if taken is None and isinstance(self._optimizer, AdamW):
            taken = self._optimizer.kernels.take_sums()
        if taken is not None:
            norms = taken[1:]
            if self._foreseen is not None and self._gradients != self._marks():
                # Another hook has changed the gradients.
                norms = norm_sums(self._optimizer, ranks=self._ranks.size).to(taken.device)
            return torch.cat([taken[:1], taken.new_zeros(2), norms])
        if self._change is None:
            return None
        norms = norm_sums(self._optimizer, ranks=self._ranks.size)
        return torch.cat([self._change, norms.to(self._change.device)])

    def _marks(self) -> list[tuple[int, int]]:
        """Returns what differs as soon as a gradient is another, or was written to."""
        grads = (p.grad for group in self._optimizer.param_groups for p in group["params"])
        return [(id(g), -1 if g.is_inference() else g._version) for g in grads if g is not None]
