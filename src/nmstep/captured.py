"""The state machine where steps are captured in a CUDA graph and replayed: what a replay leaves the host to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep import late
from nmstep.machine import StateMachine
from nmstep.optim.adamw import AdamW
from nmstep.optim.captures import baked_in, check_capture, read_by_a_step

__all__ = ["CapturableMachine"]


@dataclass(frozen=True, kw_only=True)
class _Captured:
    """A captured step.

    Args:
        baked_in: what its replays cannot see change.
        names: of the gradients whose finiteness each replay leaves; None for none.
        sums: whether each replay leaves its share of the sums over the variance.
        held: what its replays read and write, so that one too many does not write to memory that is another's now.
    """

    baked_in: dict[str, Any]
    names: list[str] | None
    sums: bool
    held: list[Tensor | None]


class CapturableMachine(StateMachine):
    """A state machine that knows captured steps and their replays.

    While a step is captured the hooks add to the graph what is done on the device, and count nothing.
    :meth:`replayed` does the rest after each replay.
    """

    _captured: _Captured | None = None
    _names: list[str] | None = None
    # Where replays leave sums, and whether gradients are finite: outside of any graph, and one for all of them.
    _left: tuple[Tensor, Tensor] | None = None

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As of every state machine; of a step that is being captured, all that a graph can hold.

        Raises:
            RuntimeError: a step is captured that a graph cannot hold.
        """
        if not late.is_capturing():
            return super().before_step(optimizer, args, kwargs)
        self.check_shows_own("optimizer.step()")
        if isinstance(optimizer, AdamW):
            optimizer.kernels.prepare(own=False)
        self._sums.forget()
        self._in_one_pass = self._prepare_one_pass()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        check_capture(optimizer, closure, around=self._why_not_whole())
        assert self._left is not None  # since an ordinary step came first
        self._names = None
        found = self._gate.gradients.captured()
        if found is not None:
            self._names = found[0]
            self._left[1][: len(found[0])] = found[1]
        if self.phase == "sparse":
            self._sparse.open_(refine=self.recipe.refine, in_one_pass=True)
        return args, kwargs

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """As of every state machine; of a step that is being captured, notes what its graph holds."""
        if not late.is_capturing():
            super().after_step(optimizer, args, kwargs)
            if self._left is None and optimizer.defaults.get("capturable"):
                self._make_room()
            return
        if self.phase == "sparse":
            self._sparse.close_(self.pattern_of, left_over=self._left_over())
        share = self._sums.share()
        if share is not None:
            assert self._left is not None
            self._left[0].copy_(share)
        self._captured = _Captured(
            baked_in=self._baked_in(),
            names=self._names,
            sums=share is not None,
            held=list(read_by_a_step(self._optimizer)),
        )

    def is_ready(self) -> bool:
        """Whether the step that comes could be captured now: the last was an ordinary one of its kind."""
        optimizer = self._optimizer
        if not isinstance(optimizer, AdamW) or not optimizer.defaults["capturable"]:
            return False
        if self._left is None or self._gate.gradients.is_read_first():
            return False
        cuts = {}
        if self.phase == "sparse":
            cuts = {id(p): (self.pattern_of(entry, ahead=1), self.recipe.refine) for entry, p in self._sparse}
        return optimizer.kernels.is_warm(optimizer, cuts, self._may_want_variance())

    def replayed(self) -> bool:
        """Does on the host what belongs to a step that a graph has replayed, and waits for nothing.

        Returns:
            Whether the next step is another than the captured one, so that it must be captured anew.

        Raises:
            RuntimeError: nothing is captured, or the replay was of a step that was not due any more.
            FloatingPointError: as :meth:`GradientCheck.tell`.
        """
        captured, left = self._captured, self._left
        if captured is None or left is None or late.is_capturing():
            raise RuntimeError(
                "replayed() is told of the replay of a captured step, and no step of this optimizer was captured: "
                "capture one with torch.cuda.graph, and call replayed() after each replay()"
            )
        self.check_shows_own("replayed()")
        self._check_due(captured)
        if isinstance(self.loss, Tensor):
            self.loss = self.loss.clone()  # the next replay may write to it
        wanted = self._wants_variance()
        self.step += 1
        self._record(self._ranks.sum(left[0].clone()) if captured.sums and wanted else None)
        if captured.names is not None:
            self._gate.gradients.tell(self.step, captured.names, left[1][: len(captured.names)].clone())
        return captured.baked_in != self._baked_in()

    def let_go(self) -> None:
        """Forgets the captured step, and lets go of the memory that it holds."""
        self._captured = None

    def _make_room(self) -> None:
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        device = params[0].device
        sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._left = sums, torch.ones(len(params), dtype=torch.int8, device=device)

    def _why_not_whole(self) -> str | None:
        """Returns why what surrounds the step cannot be captured with it, or None."""
        if self._left is None:
            return "no step was taken since sparsify(); take an ordinary one first"
        if self._gate.gradients.is_read_first():
            return "on_nonfinite='skip' looks at the gradients before each step"
        if self._sums.geometric and self._may_want_variance():
            return "no kernel sums up logarithms, which the geometric mean is made of"
        if not self._in_one_pass:
            return (
                "the kernels cannot do all of it in one pass: a mask is chosen once, a sparse weight has no "
                "gradient, a tensor is of a kind that they do not take, or a subclass has a step of its own"
            )
        return None

    def _check_due(self, captured: _Captured) -> None:
        now = self._baked_in()
        changed = [name for name, value in captured.baked_in.items() if now[name] != value]
        if changed:
            raise RuntimeError(
                f"a step was replayed that was captured before {', '.join(changed)} changed, so the weights "
                f"are not what the recipe makes of them: go on from a checkpoint. Capture anew where replayed() "
                f"returns True, and after whatever changes the optimizer; give lr as a tensor on the device"
            )

    def _baked_in(self) -> dict[str, Any]:
        pattern_of = partial(self.pattern_of, ahead=1)
        patterns = [str(pattern_of(entry)) for entry, _ in self._sparse] if self.phase == "sparse" else []
        return {"the phase": self.switch_step, "a pattern": patterns, **baked_in(self._optimizer)}
