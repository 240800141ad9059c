"""Lightning: a callback that attaches a recipe, records its trace, and sees that checkpoints are N:M.

Importing this file needs Lightning: ``pip install 'nmstep[lightning]'``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nmstep.integrations.attached import find_sparsifier, sparsifier_of
from nmstep.integrations.marking import plan_in_force
from nmstep.integrations.trackers import Feed, Tracker
from nmstep.optim.gradients import OnNonfinite
from nmstep.packages import require
from nmstep.recipes import Recipe
from nmstep.sparsify import Sparsifier, sparsify
from nmstep.trace import TraceOptions
from nmstep.verify import verify
from nmstep.verify.stored import NM_SPARSITY

require("lightning", "its callback")
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

__all__ = ["SparsityCallback"]


class SparsityCallback(Callback):  # type: ignore[misc]
    """Attaches a recipe to an optimizer of the module, once its strategy has made them.

    - The trace goes to ``trackers`` and, at the trainer's logging steps, to its loggers.
    - At the switch every ``ModelCheckpoint`` forgets its best score: a dense model's is no mark for N:M ones.
    - Each checkpoint from then on is verified before it is written, and has the plan under ``"nm_sparsity"``.

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
        self._seen_sparse = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the recipe; optimizers are there by now, and their saved state is not loaded yet.

        Raises:
            IndexError: the module has no optimizer of that number.
            ValueError: there is no recipe and no sparsifier, or both; or as :func:`nmstep.sparsify`.
        """
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
        self._seen_sparse = sparsifier.phase == "sparse"
        self._feed = Feed(sparsifier, self._trackers if trainer.is_global_zero else ())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Notices the switch, and logs what was recorded since the last time."""
        del pl_module, args, kwargs
        sparsifier, switched = self._running(), False
        if sparsifier.phase == "sparse" and not self._seen_sparse:
            self._seen_sparse = switched = True
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    _forget_best(callback)
        if self._feed is None or not (switched or trainer.global_step % trainer.log_every_n_steps == 0):
            return
        newest = self._feed.flush()
        short = {name: value for name, value in newest.items() if name.count("/") == 1}
        if short:
            for logger in trainer.loggers:
                logger.log_metrics(short, step=sparsifier.step)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Verifies the weights that are about to be written, and adds the plan.

        Raises:
            NotSparseError: masks have started and a planned weight is not N:M.
        """
        del trainer, pl_module
        if self._feed is not None:
            self._feed.flush()
        sparsifier = self.sparsifier
        if sparsifier is not None and sparsifier.phase == "sparse" and sparsifier.plan.sparse:
            plan = plan_in_force(sparsifier)
            verify(checkpoint["state_dict"], plan=plan).raise_if_failed()
            checkpoint[NM_SPARSITY] = plan.to_dict()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the trace."""
        del trainer, pl_module
        if self._feed is not None:
            self._feed.finish()
            self._feed = None

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
