"""One run's model, optimizer and sparsifier, built from its configuration; no files here."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nmstep
from nmstep.experiments.config import RunConfig
from nmstep.experiments.options import build_recipe
from nmstep.experiments.weights import load_weights
from nmstep.plan import SparsityPlan
from nmstep.recipes import Recipe
from nmstep.tasks import Task, load

__all__ = ["Training", "learning_rate", "load_task", "make_plan", "recipe_of", "surroundings"]


def load_task(config: RunConfig) -> Task:
    """Returns the task that a configuration names, its data read.

    Raises:
        OSError: the data are missing.
        ValueError: the task or an option is unknown, or the data are malformed.
    """
    for option in config.task_options:
        if option == "data":
            raise ValueError("task_options holds 'data'; give it as the key data of its own")
    return load(config.task, data=config.data, **config.task_options)


@contextmanager
def surroundings(config: RunConfig) -> Iterator[None]:
    """Gives a ``with`` block the configuration's threads; its caller gets threads and random numbers back."""
    threads = torch.get_num_threads()
    device = torch.device(config.device or "cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_num_threads(config.threads or threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def make_plan(config: RunConfig, model: nn.Module) -> SparsityPlan | None:
    """Returns the plan that a configuration asks for, or None for a dense run without a pattern.

    Raises:
        OSError: the plan file cannot be read.
        ValueError: as :func:`nmstep.plan`, or the plan file is of another model.
    """
    if config.plan_file is not None:
        plan = SparsityPlan.load(config.plan_file)
        plan.resolve(model)
        return plan
    if config.pattern is None:
        return None
    return nmstep.plan(
        model,
        config.pattern,
        include=config.include or None,
        exclude=config.exclude,
        on_indivisible=config.on_indivisible,
    )


def recipe_of(config: RunConfig, plan: SparsityPlan | None = None) -> Recipe:
    """Returns the recipe of a configuration whose number of steps is known.

    Args:
        config: as :meth:`RunConfig.resolve` returns it.
        plan: which weights become sparse; the configuration's pattern by default.

    Raises:
        ValueError: ``steps`` is None, or an option does not fit the number of steps.

    Example:
        >>> from nmstep.experiments import RecipeOptions
        >>> options = RecipeOptions(start=0.5)
        >>> recipe_of(RunConfig(recipe="asp", pattern="2:4", steps=100, options=options)).switch
        SwitchAt(step=50)
    """
    if config.steps is None:
        raise ValueError("steps is None: resolve the configuration with its task's defaults first")
    return build_recipe(config.recipe, plan or config.pattern, config.options, steps=config.steps)


def learning_rate(config: RunConfig, step: int) -> float:
    """Returns the learning rate of the step that follows ``step`` taken ones.

    It rises in equal parts over the warm-up and never is zero, which an optimizer step would not count.
    """
    assert config.lr is not None
    assert config.steps is not None
    warmup = config.warmup or 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, config.steps - warmup)
    match config.schedule:
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * share))
        case "linear":
            return config.lr * (1 - share)
        case "inverse-sqrt":
            return config.lr * math.sqrt(max(1, warmup) / (step + 1))
        case _:
            return config.lr


def _optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    assert config.lr is not None
    assert config.weight_decay is not None
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.named_parameters(), momentum=config.momentum, **common)
    return nmstep.AdamW(model.named_parameters(), betas=config.betas, eps=config.eps, **common)


class Training:
    """A model in training: steps, scores, and a state that can be saved.

    torch's global random generator is seeded here and used for the model's weights and dropout; the order of
    the data depends on seed and step alone.

    Args:
        config: resolved.
        task: the configuration's task.

    Raises:
        ValueError: the plan or the recipe does not fit the model.
    """

    def __init__(self, config: RunConfig, task: Task) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.task = task
        self.model = task.model()
        if config.init is not None:
            load_weights(self.model, Path(config.init))
        self.device = torch.device(config.device or "cpu")
        self.model.to(self.device)
        self.plan = make_plan(config, self.model)
        self.optimizer = _optimizer(config, self.model)
        self.sparsifier = nmstep.sparsify(
            self.model,
            self.optimizer,
            recipe_of(config, self.plan),
            on_nonfinite=config.on_nonfinite,
            trace=nmstep.TraceOptions(variance_every=1),  # so that any criterion can be replayed on the run
        )
        self.step = 0
        self.train_seconds = 0.0
        self._rows = self._layers = 0
        self._switch_told = False

    @property
    def is_sparse_recipe(self) -> bool:
        """Whether the run ends with an N:M model."""
        return self.config.recipe != "dense"

    def train_step(self) -> Tensor:
        """Takes one optimizer step and returns the batch's loss, a scalar tensor."""
        assert self.config.batch_size is not None
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        batch = self.task.batch(self.step, seed=self.config.seed, batch_size=self.config.batch_size)
        with self._precision():
            loss = self.task.loss(self.model, batch)
        loss.backward()
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.sparsifier.log_loss(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.train_seconds += time.perf_counter() - started
        return loss.detach()

    def evaluate(self) -> tuple[dict[str, float], dict[str, float] | None]:
        """Returns the held-out scores, and in a sparse recipe's dense phase those under masks."""
        scores = self.score()
        if not self.is_sparse_recipe or self.sparsifier.phase == "sparse":
            return scores, None
        with self.sparsifier.masked():
            return scores, self.score()

    def score(self) -> dict[str, float]:
        """Returns the held-out scores of the model as it is."""
        with self._precision():
            return self.task.evaluate(self.model)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def new_records(self) -> list[dict[str, Any]]:
        """Returns what was recorded since the last call: steps, switch and layers, in step order.

        The order does not depend on when this is called, so that a resumed run writes the same lines.
        """
        return sorted(self._new_records(), key=lambda record: (record["step"], _ORDER[record["kind"]]))

    def _new_records(self) -> Iterator[dict[str, Any]]:
        rows = self.sparsifier.trace.rows(self._rows)
        self._rows += len(rows)
        for row in rows:
            yield {"kind": "step", **row}
        layers = self.sparsifier.trace.layers[self._layers :]
        self._layers += len(layers)
        for layer in layers:
            yield {"kind": "layers", **layer}
        sparsifier = self.sparsifier
        if sparsifier.switch_step is not None and not self._switch_told:
            self._switch_told = True
            yield {"kind": "switch", "step": sparsifier.switch_step, "reason": sparsifier.switch_reason}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on; :meth:`new_records` must have been called."""
        sparse = self.is_sparse_recipe and self.sparsifier.phase == "sparse"
        return {
            **({"nm_sparsity": json.dumps(self._plan_in_force().to_dict())} if sparse else {}),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            **({"cuda_rng": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}),
            "train_seconds": self.train_seconds,
        }

    def _plan_in_force(self) -> SparsityPlan:
        """Returns the plan with the patterns that the weights have now, on the way of a schedule too."""
        entries = self.sparsifier.plan.entries
        return SparsityPlan(
            tuple(
                e if e.pattern is None else replace(e, pattern=self.sparsifier.pattern_of(e)) for e in entries
            )
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step, self.train_seconds = state["step"], state["train_seconds"]
        self._switch_told = self.sparsifier.switch_step is not None


_ORDER = {"step": 0, "switch": 1, "layers": 2}
