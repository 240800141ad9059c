"""Lightning: a callback that attaches a recipe, records its trace, and sees that checkpoints are N:M.

Importing this file needs Lightning: ``pip install 'nmstep[lightning]'``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nmstep.integrations.attached import find_sparsifier, sparsifier_of, warn_of_lost_state
from nmstep.integrations.marking import on_all_ranks, patterns_in_force, plan_in_force
from nmstep.integrations.trackers import Feed, Tracker
from nmstep.optim.gradients import OnNonfinite
from nmstep.packages import require
from nmstep.patterns import NMPattern
from nmstep.recipes import Recipe
from nmstep.sparsify import Sparsifier, sparsify
from nmstep.sparsity_plan import SparsityPlan
from nmstep.trace import TraceOptions
from nmstep.verify import verify
from nmstep.verify.stored import NM_SPARSITY

require("lightning", "its callback")
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

__all__ = ["SparsityCallback"]

#: Callbacks that put averaged weights in the place of the model's, as far as this Lightning has them.
_AVERAGERS = tuple(
    vars(callbacks)[name]
    for name in ("StochasticWeightAveraging", "WeightAveraging")
    if name in vars(callbacks)
)


class SparsityCallback(Callback):  # type: ignore[misc]
    """Attaches a recipe to an optimizer of the module, once its strategy has made them.

    - The trace goes to ``trackers`` and, at the trainer's logging steps, to its loggers.
    - At the switch, and whenever a schedule tightens a pattern, every ``ModelCheckpoint`` and ``EarlyStopping``
      forgets its best score: that of a model with more weights is no mark for the others.
    - Each checkpoint from then on is verified before it is written, and has the plan under ``"nm_sparsity"``; so is
      the model that training ends with.

    The optimizer's state, which Lightning saves, holds all that belongs to the recipe: ``ckpt_path=`` resumes it.

    Args:
        recipe: as for :func:`nmstep.sparsify`; None where ``configure_optimizers`` has called it.
        optimizer: which of the module's optimizers, by number.
        on_nonfinite: as for :func:`nmstep.sparsify`.
        trace: likewise.
        trackers: where the trace goes beside the trainer's loggers.

    Example:
        >>> import nmstep
        >>> SparsityCallback(nmstep.SRSTE("2:4")).sparsifier is None
        True
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        *,
        optimizer: int = 0,
        on_nonfinite: OnNonfinite = "raise",
        trace: TraceOptions | None = None,
        trackers: Iterable[Tracker] = (),
    ) -> None:
        self.sparsifier: Sparsifier | None = None
        self._recipe = recipe
        self._index = optimizer
        self._settings: dict[str, Any] = {"on_nonfinite": on_nonfinite, "trace": trace}
        self._trackers = tuple(trackers)
        self._feed: Feed | None = None
        self._in_force: list[NMPattern] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the recipe; optimizers are there by now, and their saved state is not loaded yet.

        Raises:
            IndexError: the module has no optimizer of that number.
            ValueError: there is no recipe and no sparsifier, or both; a callback that replaces the weights comes
                later in the trainer's list, unseen by this one; or as :func:`nmstep.sparsify`.
        """
        later = trainer.callbacks[trainer.callbacks.index(self) + 1 :]
        unseen = [type(callback).__name__ for callback in later if isinstance(callback, _AVERAGERS)]
        if unseen:
            raise ValueError(
                f"SparsityCallback must come after {unseen[0]} in the trainer's callbacks: that one puts averaged "
                f"weights in the place of those that are verified here"
            )
        if not 0 <= self._index < len(trainer.optimizers):
            raise IndexError(
                f"SparsityCallback(optimizer={self._index}): this module has {len(trainer.optimizers)} optimizer(s)"
            )
        optimizer = trainer.optimizers[self._index]
        found = find_sparsifier(optimizer)
        if self._recipe is not None and (found is None or found is not self.sparsifier):
            self.sparsifier = sparsify(pl_module, optimizer, self._recipe, **self._settings)
        else:
            self.sparsifier = sparsifier_of(
                optimizer,
                needed_by="SparsityCallback",
                way_out="give the callback a recipe, or call nmstep.sparsify in configure_optimizers",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the trace, once a checkpoint's state is loaded."""
        del pl_module
        sparsifier = self._running()
        if trainer.ckpt_path is not None:  # a second fit of one trainer goes on with a new optimizer
            warn_of_lost_state(sparsifier, resumed_at=trainer.global_step)
        self._in_force = patterns_in_force(sparsifier)

        def start() -> None:
            self._feed = Feed(sparsifier, self._trackers if trainer.is_global_zero else ())

        on_all_ranks(sparsifier, start)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Notices the switch and patterns that tighten, and logs what was recorded since the last time."""
        del pl_module, args, kwargs
        patterns = patterns_in_force(self._running())
        tightened, self._in_force = patterns != self._in_force, patterns
        if tightened:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    _forget_best(callback)
            for stopping in trainer.early_stopping_callbacks:
                stopping.wait_count, worst = 0, float("inf") if stopping.mode == "min" else -float("inf")
                stopping.best_score = stopping.best_score.new_tensor(worst)
        if tightened or trainer.global_step % trainer.log_every_n_steps == 0:
            on_all_ranks(self._running(), lambda: self._log(trainer))

    def _log(self, trainer: Trainer) -> None:
        newest = self._feed.flush() if self._feed is not None else {}
        short = {name: value for name, value in newest.items() if name.count("/") == 1}
        if short:
            for logger in trainer.loggers:
                logger.log_metrics(short, step=self._running().step)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Verifies the weights that are about to be written, and adds the plan.

        Raises:
            NotSparseError: masks have started and a planned weight is not N:M.
        """
        del pl_module
        if self.sparsifier is None:  # saved before any fit, as a search for the learning rate does
            return
        plan = self._plan()
        weights = checkpoint["state_dict"]

        def look() -> None:
            if self._feed is not None:
                self._feed.flush()
            if plan is not None and (weights or trainer.is_global_zero):  # others may not have been given any
                verify(weights, plan=plan).raise_if_failed()

        on_all_ranks(self._running(), look)
        if plan is not None:
            checkpoint[NM_SPARSITY] = plan.to_dict()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the trace, and verifies the model that is left.

        Raises:
            NotSparseError: masks have started and a planned weight is not N:M, as of an average of changing masks.
        """
        del trainer
        if self._feed is not None:
            on_all_ranks(self._running(), self._feed.finish)
            self._feed = None
        plan = self._plan()
        if plan is not None:
            on_all_ranks(self._running(), verify(pl_module, plan=plan).raise_if_failed)

    def _plan(self) -> SparsityPlan | None:
        """Returns the patterns that the weights have now, or None where they have none."""
        sparsifier = self._running()
        return None if patterns_in_force(sparsifier) is None else plan_in_force(sparsifier)

    def _running(self) -> Sparsifier:
        assert self.sparsifier is not None
        return self.sparsifier


def _forget_best(callback: ModelCheckpoint) -> None:
    """Sets a ModelCheckpoint back to before its first score; the files that it wrote stay."""
    if callback.monitor is None:
        return
    callback.best_k_models = {}
    callback.best_model_path = callback.kth_best_model_path = ""
    callback.best_model_score = callback.current_score = None
    worst = float("inf") if callback.mode == "min" else -float("inf")
    callback.kth_value = callback.kth_value.new_tensor(worst)
