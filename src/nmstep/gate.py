"""Is this call of ``optimizer.step()`` a step? All ranks that hold the model together give one answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from torch import Tensor
from torch.optim import Optimizer

from nmstep.optim.gradients import GradientCheck, OnNonfinite, has_gradients, is_at_rest, is_idle
from nmstep.optim.settings import hyperparameters
from nmstep.optim.sparse_step import SparseStep
from nmstep.ranks import Ranks

__all__ = ["Call", "Gate"]


class Call(IntEnum):
    """What a call of ``step()`` is. Where ranks see different things, the largest holds."""

    NONE = 0
    STEP = 1
    SKIPPED = 2


class Gate:
    """The look at gradients and weights before every step.

    Args:
        optimizer: whose steps.
        sparse: its sparse parameters.
        on_nonfinite: what to do about a NaN or infinite gradient.
        ranks: who trains the model together.
        check_held: raises where the model holds other parameters than the optimizer.

    Attributes:
        gradients: the look at them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sparse: SparseStep,
        on_nonfinite: OnNonfinite,
        ranks: Ranks,
        check_held: Callable[[], None],
    ) -> None:
        self._optimizer = optimizer
        self._sparse = sparse
        self._ranks = ranks
        self._check_held = check_held
        self._starts = True
        self._is_sharded = False  # known from the first step on: a wrapper may still replace the parameters
        self.gradients = GradientCheck(
            optimizer, on_nonfinite, lambda: {id(p): entry.name for entry, p in sparse}, ranks
        )

    def settle(self) -> None:
        """Looks at what a GPU has still to tell of the gradients."""
        self.gradients.settle()

    def start_anew(self) -> None:
        """Forgets what was on its way: another state was loaded."""
        self.gradients.forget()
        self._starts = True

    def look(
        self, step: int, *, check: Callable[[], None], where: Mapping[str, object], is_shared: bool
    ) -> Call:
        """Returns what the call is, after the gradients were looked at.

        The ranks talk before the first step; before each one where they hold different parts of the gradients,
        which are read at once; and before one whose statistics they reduce anyway. Before others, what one rank
        finds is raised on that rank alone: a word from each to each would cost every step an exchange.

        Args:
            step: its number, if it is one.
            check: raises where this rank's weights are not what they should be.
            where: where this rank stands, as all of them must before their first step.
            is_shared: whether the ranks talk in this step in any case.

        Raises:
            ValueError: the gradients are still scaled, or the ranks stand at different steps.
            FloatingPointError: a gradient is not finite, which is to be an error.
            Exception: what ``check`` raised on some rank.
        """
        if self._is_left_out_by_a_scaler():
            return Call.NONE
        if not has_gradients(self._optimizer):
            self._check_held()  # the gradients may be with parameters that took the place of these
            return Call.NONE

        def here() -> Call:
            if is_idle(self._optimizer):
                return Call.NONE
            if not self.gradients.passes(step):
                return Call.SKIPPED
            check()
            return Call.STEP

        together = self._ranks.size > 1 and (
            self._starts  # models that were seeded unlike, and wrapped in DDP only then, differ here
            or is_shared
            or (self._is_sharded and (self.gradients.is_read_at_once() or is_at_rest(self._optimizer)))
        )
        call = Call(self._ranks.worst(here)) if together else self._alone(here)
        if call == Call.SKIPPED:
            self._sparse.hide_gradients()
        if call == Call.STEP and self._starts:
            self._ranks.agree(lambda: self._start(where))
            self._starts, self._is_sharded = False, self._sparse.is_sharded()
        return call

    def _alone(self, here: Callable[[], Call]) -> Call:
        try:
            return here()
        except Exception as error:
            if self._ranks.size > 1:
                error.add_note(
                    "No word of this went to other ranks: those that did not find the same wait in their next "
                    "exchange until this process ends, so let it, or until the process group's timeout."
                )
            raise

    def _start(self, where: Mapping[str, object]) -> dict[str, str]:
        # Again: a wrapper may have replaced the parameters since sparsify.
        self._check_held()
        self._sparse.check_shards(self._ranks.members)
        return {name: str(value) for name, value in where.items()} | hyperparameters(self._optimizer)

    def _is_left_out_by_a_scaler(self) -> bool:
        optimizer = self._optimizer
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and self._is_infinite(found_inf):
            self._sparse.hide_gradients()  # a loss scaler that leaves skipping to the optimizer
            return True
        if getattr(optimizer, "grad_scale", None) is not None:
            optimizer.grad_scale = optimizer.found_inf = None  # type: ignore[attr-defined]
            raise ValueError(
                "the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step"
            )
        return False

    def _is_infinite(self, found_inf: Tensor) -> bool:
        """Whether a loss scaler has found an infinity on any rank; each may have looked at its own part."""

        def here() -> int:
            return int(float(found_inf) > 0)

        return bool(self._ranks.worst(here) if self._sparse.is_sharded() else here())
