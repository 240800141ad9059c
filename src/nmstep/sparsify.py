"""Two lines in the user's own loop: a recipe attached to an optimizer."""

from __future__ import annotations

import warnings
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmstep.admission import ATTACHED, check_arguments, what_must_agree
from nmstep.captured import CapturableMachine
from nmstep.machine import Phase, target
from nmstep.optim.adamw import AdamW
from nmstep.optim.gradients import OnNonfinite
from nmstep.optim.sparse_step import SparseStep
from nmstep.optim.splitting import split_all_
from nmstep.patterns import NMPattern
from nmstep.plan import PlanEntry, SparsityPlan, plan
from nmstep.ranks import ProcessGroup, Ranks
from nmstep.recipes.recipe import Recipe
from nmstep.saved import SavedState
from nmstep.shards import is_sharded, reshard
from nmstep.sparsity_plan import unwrap
from nmstep.trace import Trace, TraceOptions
from nmstep.views import Views

__all__ = ["Sparsifier", "sparsify"]


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    recipe: Recipe,
    *,
    on_nonfinite: OnNonfinite = "raise",
    trace: TraceOptions | None = None,
    process_group: ProcessGroup = "world",
) -> Sparsifier:
    """Attaches a recipe to an optimizer and returns the Sparsifier that runs it.

    From here on ``optimizer.step()`` does all of the recipe's work, and the model's parameters are
    dense before the masks start and exactly N:M from then on. A recipe that starts at step 0 masks here.

    Args:
        model: the model that trains.
        optimizer: any ``torch.optim.Optimizer`` that holds the planned parameters. A recipe that freezes
            the variance needs :class:`nmstep.AdamW`; AutoSwitch needs one of the Adam family.
        recipe: from a preset such as :func:`nmstep.STEP`.
        on_nonfinite: what to do about a NaN or infinite gradient: ``"raise"`` names the parameters and
            changes nothing, ``"skip"`` leaves the step out, ``"ignore"`` does not look (and saves one
            reading of the gradients). On a GPU ``"raise"`` comes :data:`nmstep.late.LATE_STEPS` steps late, so
            that the host need not wait for the gradients; ``"skip"`` waits.
        trace: how much is recorded; see :class:`TraceOptions`.
        process_group: who trains the model together, all of whom must call this: all ranks of torch.distributed
            where it is initialised (``"world"``), a process group that holds every rank which has a part of the
            model, or None where each process trains a model of its own.

    Raises:
        ValueError: the optimizer lacks planned parameters, or a sparsifier is attached already, or it is
            of a kind that the recipe cannot work with; ranks differ; or a group would lie on several ranks, or a
            part of the model on a rank outside the process group.

    Example:
        >>> from nmstep import AdamW, SRSTE, verify
        >>> model = nn.Linear(8, 4)
        >>> optimizer = AdamW(model.parameters())
        >>> sparsifier = sparsify(model, optimizer, SRSTE("2:4"))
        >>> model(torch.randn(2, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> sparsifier.phase, sparsifier.step, verify(model, "2:4").ok
        ('sparse', 1, True)
    """
    return Sparsifier(
        model,
        optimizer,
        recipe,
        on_nonfinite=on_nonfinite,
        trace=trace or TraceOptions(),
        ranks=Ranks(process_group),
    )


class Sparsifier(Views):
    """A recipe at work on one model and optimizer; made by :func:`sparsify`.

    Attributes:
        plan: the plan in force; empty for a recipe without masks.
        recipe: the recipe.
        saved: the part in the optimizer's state dict; for nmstep's own integrations.
        ranks: who trains the model together; likewise.
    """

    _machine: CapturableMachine

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        recipe: Recipe,
        *,
        on_nonfinite: OnNonfinite,
        trace: TraceOptions,
        ranks: Ranks,
    ) -> None:
        self.recipe = recipe
        self.ranks = ranks
        self._model, self._optimizer = model, optimizer

        def prepare() -> dict[str, str]:
            check_arguments(model, optimizer, recipe, on_nonfinite)
            reshard(model)  # the optimizer holds the shards, not what an evaluation has gathered
            self.plan = _plan(model, recipe)
            found = self.plan.resolve(model)
            self._sparse = SparseStep(optimizer, [(entry, found[entry.name]) for entry in self.plan.sparse])
            self._sparse.check_shards(ranks.members)
            self._machine = CapturableMachine(
                optimizer,
                recipe,
                self._sparse,
                on_nonfinite=on_nonfinite,
                options=trace,
                ranks=ranks,
                check_held=self._check_held,
            )
            self.saved = SavedState(optimizer, recipe, self.plan, self._sparse, self._machine, ranks)
            goes_on = {"the step that the optimizer's state is of": repr(self.saved.look())}
            return goes_on | what_must_agree(self.plan, optimizer, recipe, on_nonfinite, trace)

        ranks.agree(prepare)
        if not self.saved.adopt():
            self._machine.begin()
        self._handles = [
            # Called as they are where torch.compile traces the step: traced, the first step was lost.
            optimizer.register_step_pre_hook(torch.compiler.disable(self._machine.before_step)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._machine.after_step)),
            optimizer.register_state_dict_pre_hook(self.saved.before_save),
            optimizer.register_state_dict_post_hook(self.saved.save),
            optimizer.register_load_state_dict_pre_hook(self.saved.before_load),
            optimizer.register_load_state_dict_post_hook(self.saved.after_load),
        ]
        setattr(optimizer, ATTACHED, self)

    def _check_held(self) -> None:
        """Raises RuntimeError where the model holds other parameters than the optimizer under the plan's names."""
        held = dict(unwrap(self._model).named_parameters())
        replaced = [
            entry.name
            for entry, p in self._sparse
            # A layer of FSDP2 holds its gathered weight instead of its shard for a while.
            if held.get(entry.name, p) is not p and (is_sharded(held[entry.name]) or not is_sharded(p))
        ]
        if replaced:
            raise RuntimeError(
                f"the model no longer holds the parameter of the optimizer as {', '.join(map(repr, replaced[:5]))}"
                f"{' …' if len(replaced) > 5 else ''}, so that steps would not change it: was it cut or replaced "
                f"after nmstep.sparsify, as by fully_shard? Do that first, then make the optimizer, then sparsify"
            )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a sparsifier is neither copied nor pickled, since the copy would hang on no optimizer: copy the model "
            "and make an optimizer for it, call nmstep.sparsify, and load optimizer.state_dict() into that"
        )

    @property
    def phase(self) -> Phase:
        """``"dense"`` before the masks start, ``"sparse"`` from then on."""
        return self._machine.phase

    @property
    def step(self) -> int:
        """Optimizer steps taken since :func:`sparsify`."""
        return self._machine.step

    @property
    def switch_step(self) -> int | None:
        """The number of optimizer steps taken when the masks started, or None."""
        return self._machine.switch_step

    @property
    def switch_reason(self) -> str | None:
        """Why the masks started, or None.

        One of ``"scheduled"``, ``"threshold"``, ``"t_max"``, ``"relative_norm"``, ``"norm_ratio"``.
        """
        return self._machine.switch_reason

    @property
    def skipped_steps(self) -> int:
        """Steps left out for a non-finite gradient."""
        return self._machine.skipped_steps

    @property
    def trace(self) -> Trace:
        """What was recorded."""
        return self._machine.trace

    @property
    def window_mean(self) -> float | None:
        """What the switch compared with its threshold last, or None."""
        return self._machine.window_mean

    def pattern_of(self, entry: PlanEntry) -> NMPattern:
        """Returns the pattern in force for a sparse entry of the plan: a schedule may not be at its last yet."""
        return self._machine.pattern_of(entry)

    def __repr__(self) -> str:
        switched = (
            "" if self.switch_step is None else f", masks from step {self.switch_step} ({self.switch_reason})"
        )
        return f"Sparsifier({self.recipe.name}, step {self.step}, phase {self.phase}{switched})"

    def log_loss(self, loss: Tensor | float) -> None:
        """Notes the loss of the coming step for the trace; a tensor on a GPU is not read before the next flush.

        Raises:
            ValueError: ``loss`` has more than one element.
        """
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise ValueError(
                f"log_loss takes one number, got a tensor of shape {tuple(loss.shape)}: log its mean"
            )
        self._machine.loss = loss.detach() if isinstance(loss, Tensor) else loss

    @property
    def ready_to_capture(self) -> bool:
        """Whether the coming step can be captured in a CUDA graph, after an ordinary one of its kind.

        Where it stays False, a capture that is tried all the same says why.
        """
        return self._machine.is_ready()

    def replayed(self) -> bool:
        """Notes that a CUDA graph has replayed a step, and returns whether the step must be captured anew.

        To be called after each ``graph.replay()`` of a captured ``optimizer.step()``. It counts the step, records
        it, and asks the switch; where that decides, the masks start here. A graph is of no use any more once the
        masks have started, or a schedule's next pattern is due. No layers are sampled in replayed steps.

        Raises:
            RuntimeError: no step was captured; or the graph was captured before something changed that it cannot
                see: the phase, a pattern, a setting, or the memory of a parameter or its state.
            FloatingPointError: a gradient was NaN or infinite in a replay, some steps ago.
        """
        return self._machine.replayed()

    def finalize(self) -> None:
        """Forgets the pruned part and detaches: the model is plain and N:M, the optimizer ordinary.

        Where the masks have not started, or a schedule has not reached its last pattern, the final
        pattern is applied now, with a warning. Steps taken afterwards would fill the zeros again. A frozen
        variance goes on from where it was frozen, as Adam's. A second call does nothing.

        Raises:
            RuntimeError: the model holds other parameters than the optimizer.
        """
        if not self._handles:
            return
        self._machine.check_shows_own("finalize()")
        self._check_held()
        self._machine.recover()
        self._machine.settle()
        reached = all(self._machine.pattern_of(entry) == entry.pattern for entry in self.plan.sparse)
        if self.plan.sparse and not (self.phase == "sparse" and reached):
            warnings.warn(
                f"{self.recipe.name} had not reached its final pattern after {self.step} steps "
                f"({'the masks had not started' if self.phase == 'dense' else 'the schedule was not over'}); "
                f"it was applied now in one shot, which usually costs accuracy",
                stacklevel=2,
            )
            split_all_(self._sparse, target)
            self._forget_copies()
        self._sparse.forget()
        self._machine.let_go()
        if isinstance(self._optimizer, AdamW):
            self._optimizer.unfreeze_variance_()
            self._optimizer.kernels.prepare(own=False)
        self.trace.flush()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if hasattr(self._optimizer, ATTACHED):
            delattr(self._optimizer, ATTACHED)


def _plan(model: nn.Module, recipe: Recipe) -> SparsityPlan:
    if recipe.pattern is None:
        return SparsityPlan(())
    return recipe.pattern if isinstance(recipe.pattern, SparsityPlan) else plan(model, recipe.pattern)
