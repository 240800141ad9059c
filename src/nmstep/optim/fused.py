"""AdamW's step by the kernels: when they do it, and what they are told besides Adam's update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nmstep import late
from nmstep.kernels import Cut, Update, adam_step_, foreseen_sums, status, takes_gradient, takes_state
from nmstep.kernels.gpu.tables import Tables
from nmstep.kernels.native import engine_for
from nmstep.patterns import NMPattern
from nmstep.shards import aligned, copies, is_sharded, local, touch

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
        capturable: whether steps are counted on the device; then None is for every step, too.

    Raises:
        RuntimeError: ``fused`` is True and there are no kernels.
    """

    def __init__(self, fused: bool | None, *, capturable: bool = False) -> None:
        if fused and status().active == status().on_gpu == "torch":
            raise RuntimeError(f"fused=True needs nmstep's kernels: {status().why}; leave fused unset")
        self._fused = True if capturable else fused
        #: Processes that hold the model together: each sums up its own share.
        self.ranks = 1
        self._tables = Tables()
        self._warm: dict[int, object] = {}  # of what kind each parameter's part in the last step was
        self._taken: dict[int, object] = {}  # what is known of the parameters and states that were looked at
        self.prepare(own=False)

    def prepare(self, *, own: bool) -> None:
        """Says whether the coming step belongs to a sparse one, which torch does not have."""
        self._own = own
        self._accepted = False
        self._cuts: dict[int, Cut] = {}
        self._wants_sums = False
        self._sums: Tensor | None = None

    def offer(self, optimizer: AdamW, cuts: Mapping[int, Cut], *, sums: bool) -> bool:
        """Hands the coming step over with all that surrounds it, and returns whether it is taken.

        Args:
            optimizer: whose step.
            cuts: what to cut, by the id of each sparse parameter.
            sums: keep sums over the second moment for :meth:`take_sums`.
        """
        if not self._is_wanted(optimizer) or not self._can(optimizer, cuts, sums=sums):
            return False
        self._accepted = True
        self._cuts, self._wants_sums = dict(cuts), sums
        return True

    def takes(self, optimizer: AdamW) -> bool:
        """Whether the kernels do the step that begins now.

        Raises:
            RuntimeError: they accepted it when it was offered, and something has been changed since.
        """
        if self._accepted and len(optimizer._optimizer_step_pre_hooks) == 1:
            return True  # nobody stood between the hook that offered the step and here
        taken = (self._accepted or self._is_wanted(optimizer)) and self._can(optimizer, self._cuts)
        if not taken:
            self._warm.clear()
        if self._accepted and not taken:
            raise RuntimeError(
                "a parameter, a gradient or a state was changed between nmstep's hook and the optimizer's step, so "
                "that the kernels cannot take it; nothing was changed. Register hooks that do so "
                "before nmstep.sparsify, or make the optimizer with fused=False"
            )
        return taken

    def _is_wanted(self, optimizer: AdamW) -> bool:
        if self._fused is False or any(group["amsgrad"] for group in optimizer.param_groups):
            return False
        return bool(
            self._fused
            or self._own
            or any(group["eps_root"] != 0.0 for group in optimizer.param_groups)
            or any(FROZEN in state for state in optimizer.state.values())
        )

    def _can(self, optimizer: AdamW, cuts: Mapping[int, Cut], *, sums: bool = False) -> bool:
        """Whether the kernels take every tensor of the step; sums are those of all moments or none."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                if p.grad is None:
                    if sums and state:
                        return False
                    continue
                ours = _takes_gradient(p, p.grad) and not optimizer.widens(p)
                if not (ours and self._takes_state(p, state, cuts.get(id(p)))):
                    return False
        return True

    def _takes_state(self, p: Tensor, state: dict[str, Any], cut: Cut | None) -> bool:
        """Whether the kernels take a parameter with its state; looked at closely where it is not as it was."""
        first, second = state.get("exp_avg"), state.get("exp_avg_sq")
        pruned = None if cut is None else cut.pruned
        if is_sharded(p):
            if not all(t is None or is_sharded(t) for t in (first, second, pruned)):
                return False
            first, second, pruned = (None if t is None else local(t) for t in (first, second, pruned))
            p = local(p)
        held = [t for t in (p, first, second, pruned) if t is not None]
        mark = [(id(t), t.data_ptr(), t.stride(), t.shape, t.dtype) for t in held]
        frozen = FROZEN in state
        if self._taken.get(id(p)) == (mark, frozen):
            return True
        states = [t for t in (first, pruned) if t is not None]
        if not takes_state(p, *states, exp_avg_sq=second, frozen=frozen):
            return False
        self._taken[id(p)] = (mark, frozen)
        return True

    def take_sums(self) -> Tensor | None:
        """Returns ``[Σ|v_t − v_{t−1}|, Σ v_t, Σ v_t²]`` of a step that :meth:`offer` asked them for, or None."""
        sums, self._sums = self._sums, None
        return sums

    def left_over(self) -> set[int]:
        """Returns the ids of the parameters that were to be cut and had no gradient any more."""
        return set(self._cuts)

    def why_not_captured(self, optimizer: AdamW) -> str | None:
        """Returns why a graph cannot hold the coming step, as far as the kernels are concerned, or None."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        cuts = {key: (cut.pattern, cut.refine) for key, cut in self._cuts.items()}
        if not self._can(optimizer, self._cuts):
            return "the kernels do not take every tensor of it, and plain torch reads numbers on the host"
        if held != set(self._warm) or not self.is_warm(optimizer, cuts, self._wants_sums):
            return "the step before was not an ordinary one of the same kind; take one first"
        return None

    def is_warm(self, optimizer: AdamW, cuts: Mapping[int, tuple[NMPattern, float]], sums: bool) -> bool:
        """Whether the last step was an ordinary one that the kernels took, and another is like it.

        Args:
            optimizer: whose steps.
            cuts: pattern and λ of each sparse parameter in the other step, by id.
            sums: whether it sums up.
        """
        params = [p for group in optimizer.param_groups for p in group["params"] if id(p) in self._warm]
        kinds = {id(p): _kind(optimizer.state.get(p, {}), cuts.get(id(p)), sums) for p in params}
        return bool(self._warm) and kinds == self._warm

    def foresee(self, optimizer: AdamW) -> Tensor | None:
        """Returns what :meth:`take_sums` would of a step that these kernels do not take, before it is taken.

        None where they cannot: then plain torch must sum up.
        """
        if self._fused is False or not self._can(optimizer, {}, sums=True):
            return None
        updates: list[tuple[float, Update]] = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = optimizer.state.get(p, {})
                if "exp_avg_sq" not in state:
                    return None
                update = _update(group, p, p.grad, state, _number(group, p, state["step"]))
                updates.append((copies(p, self.ranks), update))
        found = [(share, foreseen_sums(same)) for share, same in _by_share(updates)]
        return None if any(sums is None for _, sums in found) else _total(found)

    def step(self, optimizer: AdamW) -> None:
        """Takes the step."""
        updates: list[tuple[float, Update]] = []
        steps: list[Tensor] = []
        written: list[Tensor | None] = []
        warm: dict[int, object] = {}
        self._warm.clear()
        for group in optimizer.param_groups:
            columns: list[list[Tensor]] = [[], [], [], [], [], []]
            optimizer._init_group(group, *columns)  # type: ignore[no-untyped-call]
            for p, grad, step in zip(columns[0], columns[1], columns[5], strict=True):
                cut = self._cuts.pop(id(p), None)
                state = optimizer.state[p]
                update = _update(group, p, grad, state, _number(group, p, step), cut)
                updates.append((copies(p, self.ranks), update))
                steps.append(step)
                warm[id(p)] = _kind(
                    state, None if cut is None else (cut.pattern, cut.refine), self._wants_sums
                )
                if is_sharded(p):
                    written += [p, state["exp_avg"], state["exp_avg_sq"], None if cut is None else cut.pruned]
        if steps:
            torch._foreach_add_(steps, 1)
        there = bool(updates) and all(isinstance(update.step, Tensor) for _, update in updates)
        tables = self._tables if there else None
        found = [
            (share, adam_step_(same, sums=self._wants_sums, tables=tables))
            for share, same in _by_share(updates)
        ]
        touch(*written)
        self._sums = _total(found) if self._wants_sums else None
        if tables is not None and late.is_capturing():
            tables.hold_room()
        elif tables is not None:
            tables.make_room(updates[0][1].p.device)
            self._warm = warm


def _takes_gradient(p: Tensor, grad: Tensor) -> bool:
    if is_sharded(p):
        return is_sharded(grad) and takes_gradient(local(p), local(aligned(grad, p)))
    return takes_gradient(p, grad)


def _by_share(updates: list[tuple[float, Update]]) -> list[tuple[float, list[Update]]]:
    """Returns the updates of one step, by the number of ranks that hold the same; one list for one process."""
    found: dict[float, list[Update]] = {}
    for share, update in updates:
        found.setdefault(share, []).append(update)
    return list(found.items())


def _total(found: list[tuple[float, Tensor | None]]) -> Tensor:
    """Returns this rank's share of the sums."""
    rows = [sums if share == 1.0 else sums / share for share, sums in found if sums is not None]
    if len(rows) == 1:
        return rows[0]
    device = next((row.device for row in rows if row.device.type != "cpu"), torch.device("cpu"))
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for row in rows:
        total += row.to(device, non_blocking=True)
    return total


def _counts_there(group: Mapping[str, Any], p: Tensor) -> bool:
    """Whether a parameter's steps are counted on its device, by the kernels that can read them there."""
    return bool(group["capturable"]) and engine_for(local(p).device) == "triton"


def _number(group: Mapping[str, Any], p: Tensor, step: Tensor) -> float | Tensor:
    """Returns the coming step's number; where steps are counted on a device, the counter, which is raised first."""
    return step if _counts_there(group, p) else float(step) + 1


def _kind(state: Mapping[str, Any], cut: tuple[NMPattern, float] | None, sums: bool) -> object:
    """Returns what a parameter's part in a step is compiled for, as far as it may change between steps."""
    return (sums, FROZEN in state, cut)


def _update(
    group: Mapping[str, Any],
    p: Tensor,
    grad: Tensor,
    state: Mapping[str, Any],
    step: float | Tensor,
    cut: Cut | None = None,
) -> Update:
    update = Update(
        group=group,
        p=p,
        grad=grad,
        exp_avg=state["exp_avg"],
        exp_avg_sq=state["exp_avg_sq"],
        step=step,
        frozen_eps_root=state.get(FROZEN),
        cut=cut,
    )
    if not is_sharded(p):
        return update
    return replace(
        update,
        p=local(p),
        grad=local(aligned(grad, p)),
        exp_avg=local(update.exp_avg),
        exp_avg_sq=local(update.exp_avg_sq),
        cut=cut and replace(cut, pruned=local(cut.pruned)),
    )
