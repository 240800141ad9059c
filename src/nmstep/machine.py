"""The state machine that every recipe is a setting of: what happens before and after an optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.gate import Call, Gate
from nmstep.kernels import Cut
from nmstep.late import Late
from nmstep.optim.adamw import AdamW
from nmstep.optim.closure import run_closure
from nmstep.optim.gradients import OnNonfinite
from nmstep.optim.layer_stats import latent_masks, layer_stats
from nmstep.optim.sparse_step import SparseStep
from nmstep.optim.step_sums import StepSums
from nmstep.optim.variance import coordinates, has_variance, largest_beta2
from nmstep.patterns import NMPattern
from nmstep.ranks import Ranks
from nmstep.recipes.recipe import Recipe
from nmstep.sparsity_plan import PlanEntry
from nmstep.switching import SwitchAt
from nmstep.trace import UNSEEN, Trace, TraceOptions, stats_of, switch_values, variance_row

__all__ = ["Phase", "StateMachine", "target"]

Phase = Literal["dense", "sparse"]


class StateMachine:
    """Phase, switch and trace of one recipe on one optimizer.

    Args:
        optimizer: whose steps :meth:`before_step` and :meth:`after_step` enclose.
        recipe: the recipe.
        sparse: the optimizer's sparse parameters.
        on_nonfinite: what to do about a NaN or infinite gradient.
        options: how much is recorded.
        ranks: who trains the model together.
        check_held: raises where the model holds other parameters than the optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        recipe: Recipe,
        sparse: SparseStep,
        *,
        on_nonfinite: OnNonfinite,
        options: TraceOptions,
        ranks: Ranks,
        check_held: Callable[[], None],
    ) -> None:
        self.step = 0
        self.skipped_steps = 0
        self.switch_step: int | None = None
        self.switch_reason: str | None = None
        self.recipe = recipe
        self.loss: Tensor | float = math.nan
        self._optimizer = optimizer
        self._sparse = sparse
        self._ranks = ranks
        if isinstance(optimizer, AdamW):
            optimizer.kernels.ranks = ranks.size
        self._gate = Gate(optimizer, sparse, on_nonfinite, ranks, check_held)
        self._seen = Late()  # what the switch has still to observe
        self._options = options
        self._detector = None
        if recipe.switch is not None:
            self._detector = recipe.switch.detector(
                beta2=largest_beta2(optimizer), total_steps=recipe.total_steps
            )
        threshold = None if self._detector is None else self._detector.threshold
        self.trace = Trace(d=coordinates(optimizer), threshold=threshold, block=options.block)
        geometric = options.geometric or getattr(recipe.switch, "mean", None) == "geometric"
        self._sums = StepSums(optimizer, geometric=geometric, ranks=ranks)
        self._has_variance = has_variance(optimizer)
        self.shows: str | None = None  # what is in the model for a while, in place of its own weights
        self.expects_load = False  # whether the optimizer's state is no more than room for a checkpoint's
        self._taking = False
        self._in_one_pass = False
        self._old_masks: list[Tensor] | None = None

    @property
    def phase(self) -> Phase:
        """``"dense"`` before the masks start, ``"sparse"`` from then on."""
        return "dense" if self.switch_step is None else "sparse"

    @property
    def window_mean(self) -> float | None:
        """What the switch compared with its threshold last, or None."""
        return None if self._detector is None else self._detector.window_mean

    def begin(self) -> None:
        """Starts the masks of a recipe that starts at step 0."""
        if isinstance(self.recipe.switch, SwitchAt) and self.recipe.switch.step == 0:
            self._start("scheduled")

    def pattern_of(self, entry: PlanEntry, *, ahead: int = 0) -> NMPattern:
        """Returns the pattern in force for ``entry`` now, or some steps ahead."""
        step = self.step + ahead
        since = step - (self.switch_step if self.switch_step is not None else step)
        return self.recipe.schedule.pattern_at(target(entry), since)

    def check_shows_own(self, what: str) -> None:
        """Raises RuntimeError while the model does not hold its own weights."""
        if self.shows is not None:
            raise RuntimeError(
                f"no {what} inside sparsifier.{self.shows}(): the model does not hold its own weights there; leave "
                f"the block first"
            )

    def recover(self) -> None:
        """Gives state and gradients back after a step that was none, or in which the optimizer raised."""
        if self._sparse.is_open:
            self._sparse.close_(self.pattern_of)
        self._sparse.restore_gradients()

    def settle(self) -> None:
        """Looks at what a GPU has still to tell of the gradients."""
        self._gate.settle()

    def state(self) -> dict[str, Any]:
        """Returns what must be saved beside the tensors, as JSON values."""
        return {
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "switch_step": self.switch_step,
            "switch_reason": self.switch_reason,
            "detector": None if self._detector is None else self._detector.state(),
            "seen": [[step, values.tolist()] for step, values in self._seen.pending()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave."""
        self.step, self.skipped_steps = state["step"], state["skipped_steps"]
        self.switch_step, self.switch_reason = state["switch_step"], state["switch_reason"]
        if self._detector is not None:
            self._detector.load(state["detector"])
        if isinstance(self._optimizer, AdamW):
            self._optimizer.hold_frozen_in_(self.recipe.preconditioner_dtype)
        self._gate.start_anew()
        self.trace.rewind(self.step)
        self._seen.load([(step, torch.tensor(values, dtype=torch.float64)) for step, values in state["seen"]])

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the closure, looks at the gradients and opens the sparse step; a step pre-hook."""
        self.check_shows_own("optimizer.step()")
        if self.expects_load:
            raise RuntimeError(
                "this optimizer was prepared to load a checkpoint, and has not loaded one: call set_state_dict"
            )
        self.recover()
        self._sums.forget()
        if isinstance(optimizer, AdamW):
            optimizer.kernels.prepare(own=False)
        args, kwargs, loss = run_closure(args, kwargs)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.loss = loss.detach()
        self._taking = self._is_a_step()
        if self._taking:
            self._in_one_pass = self._prepare_one_pass()
            if self.phase == "sparse":
                self._sparse.open_(refine=self.recipe.refine, in_one_pass=self._in_one_pass)
                if self._is_sample(self._options.layers_every) and self.recipe.mask == "every_step":
                    self._old_masks = latent_masks(self._sparse, self.pattern_of)
            if self._wants_variance() and not self._in_one_pass:
                self._sums.before()
        elif self.phase == "sparse":
            self._sparse.set_aside()
        return args, kwargs

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Closes the sparse step, asks the switch and records; a step post-hook."""
        del optimizer, args, kwargs
        if not self._taking:
            self.recover()
            return
        self._taking = False  # a subclass that calls super().step() comes by here once more
        torch.clear_autocast_cache()  # of a step inside autocast: the next forward pass is to see the new masks
        sampled, wanted = self._is_sample(self._options.layers_every), self._wants_variance()
        self.step += 1
        if self.phase == "sparse":
            self._sparse.close_(self.pattern_of, left_over=self._left_over())
            if sampled:
                names = [entry.name for entry, _ in self._sparse]
                stats = layer_stats(self._sparse, self.pattern_of, self._old_masks, self._ranks)
                self.trace.append_layers(self.step, names, stats)
            self._old_masks = None
        self._record(self._sums.after() if wanted else None)

    def _prepare_one_pass(self) -> bool:
        """Hands the whole step over to the optimizer's kernels, where it has some that can do it."""
        optimizer = self._optimizer
        if not isinstance(optimizer, AdamW):
            return False
        cuts: dict[int, Cut] = {}
        if self.phase == "sparse" and self._sparse.slots:
            optimizer.kernels.prepare(own=True)
            cuts = self._sparse.cuts(partial(self.pattern_of, ahead=1), refine=self.recipe.refine)
            if not cuts:
                return False
        graphs = optimizer.defaults["capturable"]  # do the same in each step, and so sum up in all of them
        sums = self._may_want_variance() if graphs else self._wants_variance()
        takes = optimizer.has_own_step() and not (sums and self._sums.geometric)
        return takes and optimizer.kernels.offer(optimizer, cuts, sums=sums)

    def _left_over(self) -> set[int] | None:
        kernels = self._optimizer.kernels if isinstance(self._optimizer, AdamW) else None
        return kernels.left_over() if self._in_one_pass and kernels is not None else None

    def _is_a_step(self) -> bool:
        """Whether this call counts, after the gradients were looked at."""
        sampled = self.phase == "sparse" and self._is_sample(self._options.layers_every)
        call = self._gate.look(
            self.step + 1,
            check=lambda: self._sparse.check(thorough=sampled) if self.phase == "sparse" else None,
            where={"the step": self.step, "the step at which masks started": self.switch_step},
            is_shared=sampled,
        )
        self.skipped_steps += call == Call.SKIPPED
        return call == Call.STEP

    def _record(self, sums: Tensor | None) -> None:
        """Adds the step that was taken, and its sums where they are wanted, to the trace; asks the switch."""
        lr = self._optimizer.param_groups[0]["lr"]
        lr = lr.detach().clone() if isinstance(lr, Tensor) else lr
        row = {"step": self.step, "sparse": self.phase == "sparse", "loss": self.loss, "lr": lr}
        self._observe(row, sums)
        self.trace.append(row)
        self.loss = math.nan

    def _observe(self, row: dict[str, float | Tensor], sums: Tensor | None) -> None:
        """Adds the variance to the step's row, and asks the switch where it has still to decide."""
        detector = self._detector if self.phase == "dense" else None
        if sums is not None:
            self.trace.d = coordinates(self._optimizer)
            row |= variance_row(sums, self.trace.d, self._sums.geometric)
        if detector is None:
            return
        seen: list[tuple[int, Sequence[float]]] = [(self.step, UNSEEN)]  # reads no variance: asked at once
        if self._switch_reads_variance():
            self._seen.put(self.step, switch_values(row))
            seen = [(step, values.tolist()) for step, values in self._seen.due(self.step)]
        for step, values in seen:
            reason = detector.observe(stats_of(step, values))
            if reason is not None:
                self._start(reason)
                break
        if detector.window_mean is not None:
            row["z_mean"] = detector.window_mean

    def _switch_reads_variance(self) -> bool:
        switch = self.recipe.switch
        return self.phase == "dense" and switch is not None and switch.needs_variance

    def _start(self, reason: str) -> None:
        """Starts the masks, and freezes the variance where the recipe does; all ranks do, or none."""
        recipe, once = self.recipe, self.recipe.mask == "once"

        self._ranks.together(
            lambda: self._sparse.start_(self.pattern_of, once=once), undo=self._sparse.take_back_
        )
        self._sparse.settle_start(once=once)
        self.switch_step, self.switch_reason = self.step, reason
        self._seen.drain()
        if recipe.freeze != "none":
            assert isinstance(self._optimizer, AdamW)
            chosen = None if recipe.freeze == "all" else [p for _, p in self._sparse]
            self._optimizer.freeze_variance_(
                chosen,
                correct_bias=recipe.correct_bias,
                eps_root=recipe.eps_root,
                dtype=recipe.preconditioner_dtype,
            )

    def _wants_variance(self) -> bool:
        return self._may_want_variance() and (
            self._switch_reads_variance() or self._is_sample(self._options.variance_every)
        )

    def _may_want_variance(self) -> bool:
        if self.phase == "sparse" and self.recipe.freeze != "none":
            return False  # a frozen variance does not move, and is scaled otherwise than the recorded one
        return self._has_variance and (self._switch_reads_variance() or self._options.variance_every > 0)

    def _is_sample(self, every: int) -> bool:
        return every > 0 and (self.step + 1) % every == 0


def target(entry: PlanEntry) -> NMPattern:
    """Returns the pattern that a sparse entry ends with."""
    assert entry.pattern is not None
    return entry.pattern
