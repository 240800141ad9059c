"""The sparse step around any optimizer: give it the latent weights, take back N:M ones.

Between steps a sparse parameter ``p`` holds the weights that run, and ``optimizer.state[p]["pruned"]``
what the mask cut away. :meth:`SparseStep.open_` puts the latent ``w = p + pruned`` into ``p``, the
optimizer steps on it, and :meth:`SparseStep.close_` chooses the new mask and splits ``w`` again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.kernels import Cut, nm_mask, split_
from nmstep.optim.adamw import MASK, PRUNED
from nmstep.optim.splitting import PatternOf, put_back_, split_all_
from nmstep.plan import PlanEntry
from nmstep.shards import check_members, check_shards, is_sharded, local

__all__ = ["MASK", "PRUNED", "SparseStep"]


@dataclass(frozen=True)
class _Slot:
    """Where a planned parameter sits; a position survives wrappers that replace the tensor itself."""

    entry: PlanEntry
    group: int
    index: int


class SparseStep:
    """The sparse parameters of one optimizer.

    Args:
        optimizer: any torch optimizer that holds every parameter of ``parameters``.
        parameters: the planned entries with their parameters.

    Raises:
        ValueError: the optimizer does not hold one of them.
    """

    def __init__(self, optimizer: Optimizer, parameters: list[tuple[PlanEntry, Tensor]]) -> None:
        self.optimizer = optimizer
        places = {
            id(p): (g, i)
            for g, group in enumerate(optimizer.param_groups)
            for i, p in enumerate(group["params"])
        }
        missing = [entry.name for entry, p in parameters if id(p) not in places]
        if missing:
            raise ValueError(
                f"the optimizer does not hold {len(missing)} parameter(s) that the plan makes sparse: "
                f"{', '.join(map(repr, missing[:5]))}{' …' if len(missing) > 5 else ''}; pass them to the "
                f"optimizer (is it of this model, made after any .to() or re-initialisation?), or exclude them "
                f"from the plan"
            )
        self.slots = [_Slot(entry, *places[id(p)]) for entry, p in parameters]
        self._versions: dict[str, int] = {}
        self._held: list[Tensor] | None = None  # pruned parts or masks, while the optimizer steps
        self._latent = False
        self._gradients: list[tuple[Tensor, Tensor, Tensor | None]] = []  # parameter, its gradient, ours

    def __iter__(self) -> Iterator[tuple[PlanEntry, Tensor]]:
        for slot in self.slots:
            yield slot.entry, self.optimizer.param_groups[slot.group]["params"][slot.index]

    @torch.no_grad()
    def start_(self, pattern_of: PatternOf, *, once: bool) -> None:
        """Masks the weights for the first time: all of them, or none where something raises.

        Until :meth:`settle_start`, :meth:`take_back_` undoes it.

        Args:
            pattern_of: the pattern of each parameter.
            once: the masks are kept too.
        """
        for p, pruned in split_all_(self, pattern_of):
            self.optimizer.state[p][PRUNED] = pruned
        try:
            for entry, p in self if once else ():
                # Not `p != 0`: a kept weight may be zero.
                mask = nm_mask(p, pattern_of(entry), dim=entry.dim or 0, pad=entry.pad)
                self.optimizer.state[p][MASK] = mask
        except BaseException:
            self.take_back_()
            raise

    def take_back_(self) -> None:
        """Undoes :meth:`start_`, where it came to anything."""
        for _, p in self:
            state = self.optimizer.state.get(p, {})
            if PRUNED in state:
                put_back_([(p, state.pop(PRUNED))])
                state.pop(MASK, None)
                if not state:
                    del self.optimizer.state[p]

    def settle_start(self, *, once: bool) -> None:
        """Makes :meth:`start_` final; with ``once`` the masks are kept and nothing else."""
        for _, p in self if once else ():
            del self.optimizer.state[p][PRUNED]
        self.remember()

    @torch.no_grad()
    def open_(self, *, refine: float, in_one_pass: bool = False) -> None:
        """Puts the latent weights into the parameters, and what the recipe adds into their gradients.

        The user's gradient tensors are put aside, not written to.

        Args:
            refine: λ of SR-STE.
            in_one_pass: the optimizer itself does all of that, and the split, for what :meth:`cuts` gave it;
                parameters and gradients are left as they are.

        Raises:
            RuntimeError: a gradient is a sparse tensor.
        """
        for entry, p in self:
            if p.grad is not None and p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"the gradient of {entry.name!r} is a {p.grad.layout} tensor; a masked weight does not support "
                    f"sparse gradients: make its layer with sparse=False, or exclude it from the plan"
                )
        self._latent = False
        pairs = self._set_aside()
        if in_one_pass:
            return
        # What allocates, and so may fail, comes first; only then is a weight written to.
        for slot, (p, held) in zip(self.slots, pairs, strict=True):
            if p.grad is not None and held.dtype == torch.bool:
                self._replace(p, p.grad * held)
            elif p.grad is not None and refine:
                ascends = self.optimizer.param_groups[slot.group].get("maximize", False)
                self._replace(p, p.grad.add(held, alpha=-refine if ascends else refine))
        for p, held in pairs:
            if held.dtype != torch.bool:
                p.add_(held)
        self._latent = True

    def cuts(self, pattern_of: PatternOf, *, refine: float) -> dict[int, Cut]:
        """Returns what an optimizer needs to do the sparse step in one pass, by the id of each parameter.

        Empty where it cannot: a mask that was chosen once, or a parameter without gradient, whose mask may be due
        for another pattern all the same.
        """
        cuts = {}
        for entry, p in self:
            pruned = self.optimizer.state.get(p, {}).get(PRUNED)
            if pruned is None or p.grad is None:
                return {}
            cuts[id(p)] = Cut(pruned=pruned, pattern=pattern_of(entry), dim=entry.dim or 0, refine=refine)
        return cuts

    def latents(self) -> Iterator[tuple[PlanEntry, Tensor]]:
        """Yields the latent weight of each parameter, while the step is open and masks are chosen anew."""
        for (entry, p), held in zip(self, self._held or [], strict=True):
            yield entry, p if self._latent else p + held

    def set_aside(self) -> None:
        """Takes the method's state out of the optimizer for a step that is not to be one."""
        self._latent = False
        self._set_aside()

    def _set_aside(self) -> list[tuple[Tensor, Tensor]]:
        # torch's optimizers take a non-empty state for an initialised one, so nothing of ours may be in it.
        self._held = []
        for _, p in self:
            state = self.optimizer.state[p]
            self._held.append(state.pop(PRUNED) if PRUNED in state else state.pop(MASK))
        return [(p, held) for (_, p), held in zip(self, self._held, strict=True)]

    @torch.no_grad()
    def close_(self, pattern_of: PatternOf, *, left_over: Collection[int] | None = None) -> None:
        """Chooses the masks of the stepped weights, splits them, and gives state and gradients back.

        Args:
            pattern_of: the pattern of each parameter from this step on.
            left_over: of a step in one pass, the ids of the parameters that the optimizer did not split.
        """
        self.restore_gradients()
        if self._held is None:
            return  # closed already, by a state_dict() in the middle of the step
        for (entry, p), value in zip(self, self._held, strict=True):
            state = self.optimizer.state[p]
            if PRUNED in state or MASK in state:
                continue  # closed already, before something raised
            if value.dtype == torch.bool:
                state[MASK] = value
                p.masked_fill_(~value, 0)
            elif self._latent or (left_over and id(p) in left_over):
                if not self._latent:
                    p.add_(value)
                state[PRUNED] = split_(p, pattern_of(entry), dim=entry.dim or 0, pad=entry.pad, pruned=value)
            else:
                state[PRUNED] = value
        self._held = None
        if self._latent or left_over is not None:
            self.remember()

    @property
    def is_open(self) -> bool:
        """Whether a step began and did not end, as when the optimizer raised."""
        return self._held is not None

    def hide_gradients(self) -> None:
        """Takes every gradient away until :meth:`restore_gradients`, so that a step changes nothing."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._gradients.append((p, p.grad, None))
                    p.grad = None

    def restore_gradients(self) -> None:
        """Puts the user's own gradient tensors back."""
        for p, grad, ours in self._gradients:
            if p.grad is ours:  # else the user has set another since, after the optimizer raised
                p.grad = grad
        self._gradients.clear()

    def forget(self) -> None:
        """Drops the pruned part; the parameters stay as they are."""
        for _, p in self:
            state = self.optimizer.state.get(p, {})
            state.pop(PRUNED, None)
            state.pop(MASK, None)

    def is_sharded(self) -> bool:
        """Whether a rank holds no more than a part of some of the optimizer's parameters."""
        return any(is_sharded(p) for group in self.optimizer.param_groups for p in group["params"])

    def check_shards(self, members: Collection[int]) -> None:
        """Raises ValueError where a group of weights would lie on several ranks, or parts on ranks not meant.

        Args:
            members: the ranks that train the model together, as torch.distributed counts all of them.
        """
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                check_members(p, members)
        for entry, p in self:
            if entry.pattern is not None:
                check_shards(entry.name, p, dim=entry.dim or 0, m=entry.pattern.m)

    def check(self, *, thorough: bool = False) -> None:
        """Checks that every parameter is split as it was left.

        Args:
            thorough: look for foreign writes in every parameter, not only where torch counted one.

        Raises:
            ValueError: a parameter changed its shape, or is no longer zero where its mask cut.
            RuntimeError: the optimizer's state of a parameter is gone.
        """
        for entry, p in self:
            self._check(entry, p, thorough=thorough)

    def distrust(self) -> None:
        """Lets the next step look whether the parameters are split consistently."""
        self._versions.clear()

    def remember(self) -> None:
        """Notes that the parameters are split consistently now."""
        self._versions = {entry.name: p._version for entry, p in self}

    def _replace(self, p: Tensor, grad: Tensor) -> None:
        assert p.grad is not None
        self._gradients.append((p, p.grad, grad))
        p.grad = grad

    def _check(self, entry: PlanEntry, p: Tensor, *, thorough: bool) -> None:
        if tuple(p.shape) != entry.shape:
            raise ValueError(
                f"{entry.name!r} had shape {entry.shape} when sparsify was called and now has {tuple(p.shape)}; "
                f"change shapes before sparsify"
            )
        state = self.optimizer.state.get(p, {})
        if PRUNED not in state and MASK not in state:
            raise RuntimeError(
                f"the optimizer's state of {entry.name!r} no longer holds what its mask cut away: was the state "
                f"cleared, or the parameter replaced? Load a checkpoint, or make optimizer and sparsifier anew"
            )
        if not thorough and self._versions.get(entry.name) == p._version:
            return
        # Somebody wrote to p: a loaded checkpoint is fine, dense weights over a split would be added twice.
        cut = local(state[PRUNED]) != 0 if PRUNED in state else ~local(state[MASK])
        if bool((cut & (local(p) != 0)).any()):
            raise ValueError(
                f"{entry.name!r} was written to since the last step and is no longer zero where its mask cut: "
                f"load weights before nmstep.sparsify, or load the model and the optimizer state of one checkpoint"
            )
