"""A sparsifier's part in its optimizer's state dict: what is added, taken out and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.machine import StateMachine
from nmstep.optim import record
from nmstep.optim.adamw import FROZEN
from nmstep.optim.sparse_step import MASK, PRUNED, SparseStep
from nmstep.optim.stored_parts import check_keys, check_values, load_, positions
from nmstep.ranks import Ranks
from nmstep.recipes.recipe import Recipe
from nmstep.sparsity_plan import SparsityPlan

__all__ = ["SavedState"]

Stored = Callable[[Tensor, str], tuple[int, ...] | None]


class SavedState:
    """What a sparsifier saves, and how it takes that back; a method for each hook of the optimizer.

    Args:
        optimizer: whose state dicts.
        recipe: the recipe.
        plan: the plan in force.
        sparse: the optimizer's sparse parameters.
        machine: the state machine.
        ranks: who trains the model together.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        recipe: Recipe,
        plan: SparsityPlan,
        sparse: SparseStep,
        machine: StateMachine,
        ranks: Ranks,
    ) -> None:
        self._optimizer = optimizer
        self._recipe = recipe
        self._plan = plan
        self._sparse = sparse
        self._machine = machine
        self._ranks = ranks
        self._loaded: tuple[dict[str, Any] | None, list[dict[str, Any]]] | None = None
        self._bare: dict[Tensor, dict[str, Any]] = {}  # what look() found, without what is the method's own

    def before_save(self, optimizer: Optimizer) -> None:
        """A state-dict pre-hook."""
        del optimizer
        self._machine.check_shows_own("optimizer.state_dict()")
        self._machine.recover()
        self._machine.settle()

    def save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """A state-dict post-hook."""
        if not self._machine.expects_load:  # else there is a place for another record already
            trains = [p.requires_grad for group in optimizer.param_groups for p in group["params"]]
            record.insert(state_dict, self._record(), trains.index(True) if any(trains) else 0)

    def before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """A load pre-hook, which is given a shallow copy."""
        del optimizer
        self._loaded = self._take(state_dict)

    def after_load(self, optimizer: Optimizer) -> None:
        """A load post-hook."""
        del optimizer
        assert self._loaded is not None
        (saved, values), self._loaded = self._loaded, None
        self._machine.expects_load = False
        if saved is not None:
            self._machine.load(saved)
            load_(self._sparse, values)

    def look(self) -> int | None:
        """Looks for a state that was loaded before the optimizer was sparsified, and returns the step it is of.

        Raises:
            ValueError: the state is a copy without its record, or belongs to another recipe, plan or model.
        """
        live = self._optimizer.state
        if not any(record.RECORD in state for state in live.values()):
            if any(PRUNED in state or MASK in state for state in live.values()):
                raise ValueError(
                    "this optimizer is a copy of a sparsified one, without the record of where it stood; copy it "
                    "by new.load_state_dict(old.state_dict()) instead"
                )
            return None
        groups = [{"params": list(group["params"])} for group in self._optimizer.param_groups]
        state_dict: dict[str, Any] = {"param_groups": groups, "state": live}
        self._loaded = self._take(state_dict)
        self._bare = state_dict["state"]
        saved = self._loaded[0]
        return None if saved is None else int(saved["step"])

    def adopt(self) -> bool:
        """Goes on from the state that :meth:`look` found, if there is one; where a rank cannot, none does.

        Raises:
            Exception: what was raised on some rank; then the optimizer's state is as it was.
        """
        if self._loaded is None:
            return False
        live, bare = self._optimizer.state, self._bare
        before = {p: dict(state) for p, state in live.items()}

        def take() -> None:
            live.update({p: dict(bare.get(p, {})) for p in before})
            self.after_load(self._optimizer)

        self._ranks.together(take, undo=lambda: live.update(before))
        self._bare = {}
        return True

    def make_room(self, read: Callable[[], Stored]) -> None:
        """Makes the optimizer's state such that a distributed checkpoint finds a place for all that it holds.

        Args:
            read: reads the checkpoint, and returns what says the shape of what is stored of a parameter under a key
                of its state, or None.

        Raises:
            RuntimeError: this sparsifier has taken steps.
            ValueError: nothing is stored by a sparsifier; or the ranks read different checkpoints.
            Exception: what ``read`` raised on some rank, on all of them.
        """
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        records: dict[Tensor, tuple[int, ...]] = {}
        stored: Stored = _nothing

        def look() -> dict[str, str]:
            nonlocal stored
            if self._machine.step:
                raise RuntimeError(
                    f"this sparsifier has taken {self._machine.step} steps; load into a fresh model, optimizer and "
                    f"sparsifier"
                )
            stored = read()
            records.update({p: shape for p in parameters if (shape := stored(p, record.RECORD)) is not None})
            if not records:
                raise ValueError(
                    "the checkpoint holds no record of a sparsifier in the state of this optimizer's parameters: "
                    "load a dense checkpoint before nmstep.sparsify"
                )
            return {"the checkpoint's record": str(list(records.values()))}

        self._ranks.agree(look)
        _initialise(self._optimizer)
        for p in parameters:
            state = self._optimizer.state[p]
            if p in records:
                state[record.RECORD] = torch.zeros(records[p], dtype=torch.uint8, device=p.device)
            if stored(p, FROZEN) is not None:
                state[FROZEN] = 0.0
            for key, dtype in ((PRUNED, p.dtype), (MASK, torch.bool)):
                if stored(p, key) is not None:
                    state[key] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        self._machine.expects_load = True

    def _record(self) -> dict[str, Any]:
        planned = {
            entry.name: {"pattern": str(entry.pattern), "dim": entry.dim, "shape": list(entry.shape)}
            for entry in self._plan.sparse
        }
        keys = {
            entry.name: sorted(self._optimizer.state.get(p, {}).keys() - {PRUNED, MASK})
            for entry, p in self._sparse
        }
        head = {"version": 1, "recipe": self._recipe.describe(), "plan": planned, "state_keys": keys}
        return {**head, **self._machine.state()}

    def _take(self, state_dict: dict[str, Any]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Takes the method's own state out of a state dict, after a check that it belongs here."""
        saved, values = record.take(state_dict, (PRUNED, MASK), positions(self._sparse))
        if saved is not None:
            record.check(saved, self._record())
            check_keys(self._sparse, state_dict, saved["state_keys"])
            if saved["switch_step"] is not None:
                check_values(self._sparse, values, once=self._recipe.mask == "once")
        elif self._machine.phase == "sparse" or any(values):
            raise ValueError(
                "the loaded optimizer state was not saved by a sparsifier, but this one's masks have started; "
                "load dense states before nmstep.sparsify"
            )
        return saved, values


def _nothing(p: Tensor, key: str) -> None:
    del p, key


def _initialise(optimizer: Optimizer) -> None:
    """Makes an optimizer create its state, by a step of learning rate 0 on zero gradients, which is none."""
    held = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    for p, _ in held:
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    try:
        optimizer.step()
    finally:
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        for p, grad in held:
            p.grad = grad
