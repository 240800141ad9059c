"""AdamW's step by the compiled kernels: when they do it, and what they are told besides Adam's update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from nmstep.kernels import Cut, adam_step_, status, takes_step

if TYPE_CHECKING:
    from nmstep.optim.adamw import AdamW

__all__ = ["FROZEN", "KernelStep"]

# Its presence in a parameter's state says that exp_avg_sq holds the frozen v*; its value is the floor to
# use with it. A float, so that torch.load(weights_only=True), casting and distributed checkpoints keep it.
FROZEN = "frozen_eps_root"


class KernelStep:
    """The kernels' part in one optimizer.

    Args:
        fused: True for every step, None for those that torch does not have, False for none.

    Raises:
        RuntimeError: ``fused`` is True and there are no compiled kernels.
    """

    def __init__(self, fused: bool | None) -> None:
        if fused and status().active == "torch":
            raise RuntimeError(
                f"fused=True needs nmstep's compiled kernels: {status().why}; leave fused unset"
            )
        self._fused = fused
        self.prepare(own=False)

    def prepare(self, *, own: bool) -> None:
        """Says whether the coming step belongs to a sparse one, which torch does not have."""
        self._own = own
        self._cuts: Mapping[int, Cut] = {}
        self._sums: list[float] | None = None

    def offer(self, optimizer: AdamW, cuts: Mapping[int, Cut], *, sums: bool) -> bool:
        """Hands the coming step over with all that surrounds it, and returns whether it is taken.

        Args:
            optimizer: whose step.
            cuts: what to cut, by the id of each sparse parameter.
            sums: keep sums over the second moment for :meth:`take_sums`.
        """
        if not self.takes(optimizer, cuts):
            return False
        self._cuts, self._sums = cuts, [0.0, 0.0, 0.0] if sums else None
        return True

    def takes(self, optimizer: AdamW, cuts: Mapping[int, Cut] | None = None) -> bool:
        """Whether the kernels do the coming step: they are wanted, and can take all of it."""
        if self._fused is False or any(group["amsgrad"] for group in optimizer.param_groups):
            return False
        cuts = self._cuts if cuts is None else cuts
        wanted = bool(self._fused or self._own)
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                wanted = wanted or FROZEN in state or group["eps_root"] != 0.0
                states = [state[key] for key in ("exp_avg", "exp_avg_sq") if key in state]
                if id(p) in cuts:
                    states.append(cuts[id(p)].pruned)
                if p.grad is not None and not takes_step(p, p.grad, *states):
                    return False
        return wanted

    def take_sums(self) -> tuple[float, float, float]:
        """Returns ``(Σ|v_t − v_{t−1}|, Σ v_t, Σ v_t²)`` of the step that :meth:`offer` asked them for."""
        assert self._sums is not None
        change, norm1, norm2_squared = self._sums
        self._sums = None
        return change, norm1, norm2_squared

    def step(self, optimizer: AdamW) -> None:
        """Takes the step."""
        cuts, self._cuts = self._cuts, {}
        for group in optimizer.param_groups:
            columns: list[list[Tensor]] = [[], [], [], [], [], []]
            optimizer._init_group(group, *columns)  # type: ignore[no-untyped-call]
            for p, grad, exp_avg, exp_avg_sq, step in zip(*columns[:4], columns[5], strict=True):
                step += 1
                sums = adam_step_(
                    group,
                    p,
                    grad,
                    exp_avg,
                    exp_avg_sq,
                    step=float(step),
                    frozen_eps_root=optimizer.state[p].get(FROZEN),
                    cut=cuts.get(id(p)),
                    sums=self._sums is not None,
                )
                if self._sums is not None and sums is not None:
                    self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
