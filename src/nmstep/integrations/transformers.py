"""transformers' Trainer: an optimizer with a recipe, made by the Trainer itself, and a callback beside it.

Importing this file needs transformers and Accelerate: ``pip install 'nmstep[hf]'``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Adam, NAdam, Optimizer, RAdam

from nmstep.integrations.attached import sparsifier_of, warn_of_lost_state
from nmstep.integrations.marking import (
    mark_config,
    mark_folder,
    on_all_ranks,
    patterns_in_force,
    plan_in_force,
    unmark_folder,
)
from nmstep.integrations.trackers import Feed, JsonLines, Tracker
from nmstep.optim import AdamW
from nmstep.optim.gradients import OnNonfinite
from nmstep.packages import require
from nmstep.patterns import NMPattern
from nmstep.recipes import Recipe
from nmstep.sparsify import Sparsifier, sparsify
from nmstep.sparsity_plan import SparsityPlan
from nmstep.trace import TraceOptions
from nmstep.verify import verify

require("transformers", "the Trainer", extra="hf")
from transformers import TrainerCallback  # noqa: E402
from transformers.trainer_pt_utils import get_parameter_names  # noqa: E402

__all__ = ["TRACE_FILE", "SparseOptimizer", "SparsityCallback", "optimizer_for"]

#: What the callback writes beside the checkpoints: one JSON object for each optimizer step.
TRACE_FILE = "nm_trace.jsonl"

_log = logging.getLogger(__name__)
_ADAMS = (Adam, NAdam, RAdam)  # AdamW and nmstep's own are among them
_NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def optimizer_for(
    args: Any,
    recipe: Recipe,
    *,
    optimizer: Callable[..., Optimizer] = AdamW,
    on_nonfinite: OnNonfinite = "raise",
    trace: TraceOptions | None = None,
    **settings: Any,
) -> tuple[type[SparseOptimizer], dict[str, Any]]:
    """Returns what ``Trainer(optimizer_cls_and_kwargs=...)`` takes, with the settings of the training arguments.

    Args:
        args: ``TrainingArguments``: learning rate, betas, epsilon and weight decay are taken from them.
        recipe: as for :func:`nmstep.sparsify`; ``total_steps`` of STEP is ``args.max_steps``, where that is given.
        optimizer: a class of torch optimizers, or anything that makes one from groups and settings.
        on_nonfinite: as for :func:`nmstep.sparsify`.
        trace: likewise.
        settings: of the optimizer; they come before those of ``args``.

    Example:
        >>> import nmstep
        >>> class Args:
        ...     learning_rate, weight_decay = 1e-4, 0.01
        ...     adam_beta1, adam_beta2, adam_epsilon = 0.9, 0.98, 1e-6
        >>> factory, kwargs = optimizer_for(Args(), nmstep.SRSTE("2:4"), lr=2e-4)
        >>> factory.__name__, kwargs["lr"], kwargs["betas"]
        ('SparseOptimizer', 0.0002, (0.9, 0.98))
    """
    taken: dict[str, Any] = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    if isinstance(optimizer, type) and issubclass(optimizer, _ADAMS):
        taken |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    ours = {"recipe": recipe, "optimizer": optimizer, "on_nonfinite": on_nonfinite, "trace": trace}
    return SparseOptimizer, {**taken, **settings, **ours}


class SparseOptimizer:
    """A factory that the Trainer calls with its model: makes an optimizer and attaches a recipe to it.

    Parameters are grouped as the Trainer groups them: biases and norms do not decay.

    Example:
        >>> import nmstep
        >>> optimizer = SparseOptimizer()(nn.Linear(8, 4), recipe=nmstep.SRSTE("2:4"), lr=1e-3, weight_decay=0.1)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.1, 0.0]
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        recipe: Recipe,
        optimizer: Callable[..., Optimizer] = AdamW,
        on_nonfinite: OnNonfinite = "raise",
        trace: TraceOptions | None = None,
        weight_decay: float = 0.0,
        **settings: Any,
    ) -> Optimizer:
        """Returns the optimizer; its sparsifier is at :func:`nmstep.integrations.attached.find_sparsifier`.

        Raises:
            ValueError: as :func:`nmstep.sparsify`; or a group has no parameters at all.
        """
        names = get_parameter_names(model, [nn.LayerNorm], list(_NO_DECAY))  # type: ignore[no-untyped-call]
        decaying = set(names)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if name in decaying], "weight_decay": weight_decay},
            {"params": [p for name, p in trained if name not in decaying], "weight_decay": 0.0},
        ]
        made = optimizer(groups, **settings)
        sparsify(model, made, recipe, on_nonfinite=on_nonfinite, trace=trace)
        return made


class SparsityCallback(TrainerCallback):
    """Records a recipe's trace, marks its switch, and sees that what is saved after it is N:M and says so.

    - The trace goes to ``nm_trace.jsonl`` in the output folder, and to ``trackers``.
    - At the switch ``state.log_history`` gets an entry with ``nm_switch_step``.
    - There, and whenever a schedule tightens a pattern, the best metric so far is forgotten: the score of a model
      with more weights is no mark for the others, and ``load_best_model_at_end`` would bring it back.
    - From the switch on the model's config has ``nm_sparsity``, so that every ``save_pretrained`` writes it; each
      checkpoint is verified from its files once it is saved. Before it, an entry of an earlier run is taken out.
    - What fails on one process when a run begins, saves or ends is raised on all of them.

    Args:
        trackers: where the trace goes beside the file.
        verify_checkpoints: False to trust the optimizer, and save reading each checkpoint once.

    Example:
        >>> SparsityCallback().sparsifier is None
        True
    """

    def __init__(self, *, trackers: Iterable[Tracker] = (), verify_checkpoints: bool = True) -> None:
        self.sparsifier: Sparsifier | None = None
        self._trackers = tuple(trackers)
        self._verify = verify_checkpoints
        self._feed: Feed | None = None
        self._in_force: list[NMPattern] | None = None
        self._failed: Exception | None = None
        self._trainer: Any = None
        self._logging = False

    def log_with(self, trainer: Any) -> SparsityCallback:
        """Lets ``trainer.log`` have the newest values too, at its logging steps; returns the callback itself.

        That way they reach whatever ``report_to`` names.
        """
        self._trainer = trainer
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finds the sparsifier of the Trainer's optimizer, and opens the trace.

        Raises:
            ValueError: the optimizer has none.
        """
        del control
        self._failed = None
        self.sparsifier = sparsifier = sparsifier_of(
            kwargs.get("optimizer"),
            needed_by="SparsityCallback",
            way_out="give the Trainer optimizer_cls_and_kwargs=optimizer_for(args, recipe), or optimizers=(an "
            "optimizer that nmstep.sparsify has seen, None)",
        )
        warn_of_lost_state(sparsifier, resumed_at=state.global_step)
        # Masks from step 0 are told of after the first step.
        self._in_force = patterns_in_force(sparsifier) if sparsifier.step > 0 else None
        mark_config(kwargs.get("model"), self._plan())

        def start() -> None:
            own = [JsonLines(Path(args.output_dir) / TRACE_FILE), *self._trackers]
            self._feed = Feed(sparsifier, own if state.is_world_process_zero else [])

        on_all_ranks(sparsifier, start)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notices the switch, and patterns that a schedule tightens."""
        del args, control
        sparsifier = self._running()
        patterns = patterns_in_force(sparsifier)
        if patterns == self._in_force:
            return
        if self._in_force is None:
            mark = {"nm_switch_step": sparsifier.switch_step, "nm_switch_reason": sparsifier.switch_reason}
            state.log_history.append({**mark, "epoch": state.epoch, "step": state.global_step})
            _log.info("masks start after step %s (%s)", sparsifier.switch_step, sparsifier.switch_reason)
        self._in_force = patterns
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        mark_config(kwargs.get("model"), self._plan())

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes what was recorded since the last time."""
        del state, control, kwargs
        if self._logging or self._feed is None:
            return
        try:
            newest = self._feed.flush()
        except Exception as error:
            if args.world_size == 1:
                raise
            self._failed = self._failed or error  # raised where all processes are known to come
            return
        if self._trainer is not None and newest:
            self._logging = True
            try:
                self._trainer.log({k.replace("/", "_"): v for k, v in newest.items() if k.count("/") == 1})
            finally:
                self._logging = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Verifies the checkpoint that was just saved, and writes ``nm_sparsity`` into its config.json.

        Of a distributed checkpoint, which has neither weights of its own nor that file, the model is verified.

        Raises:
            NotSparseError: a planned weight in its files is not N:M.
        """
        del control
        plan = self._plan()

        def look() -> bool:
            self._hand_on()
            if not state.is_world_process_zero:
                return False
            folder = _folder(Path(args.output_dir), state.global_step)
            in_parts = any(
                folder.glob("*/*.distcp")
            )  # as FSDP writes them; nobody has the whole weights then
            if plan is None:
                unmark_folder(folder)
            elif self._verify and not in_parts:
                mark_folder(folder, plan)
            return in_parts

        in_parts = on_all_ranks(self._running(), look)
        if in_parts and self._verify:
            self._verify_model(kwargs.get("model"), plan)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the trace, and verifies the model that the Trainer leaves.

        Raises:
            NotSparseError: a planned weight is not N:M, as when a dense checkpoint was loaded as the best one.
        """
        del args, state, control
        plan, model = self._plan(), kwargs.get("model")

        def look() -> None:
            self._hand_on()
            if self._feed is not None:
                self._feed.finish()
                self._feed = None

        on_all_ranks(self._running(), look)
        self._verify_model(model, plan)

    def _running(self) -> Sparsifier:
        assert self.sparsifier is not None
        return self.sparsifier

    def _plan(self) -> SparsityPlan | None:
        """Returns the plan with the patterns that the weights have now, or None where they have none."""
        sparsifier = self._running()
        return None if patterns_in_force(sparsifier) is None else plan_in_force(sparsifier)

    def _verify_model(self, model: Any, plan: SparsityPlan | None) -> None:
        if plan is not None and model is not None:
            on_all_ranks(self._running(), verify(model, plan=plan).raise_if_failed)

    def _hand_on(self) -> None:
        """Writes what was recorded, or raises what went wrong with it before."""
        if self._failed is not None:
            raise self._failed
        if self._feed is not None:
            self._feed.flush()


def _folder(output: Path, step: int) -> Path:
    """Returns the folder of a checkpoint, which in a search for hyperparameters is in one of its trial's."""
    name = f"checkpoint-{step}"
    found = [place for place in (output / name, *output.glob(f"*/{name}")) if place.is_dir()]
    return max(found, key=lambda place: place.stat().st_mtime, default=output / name)
