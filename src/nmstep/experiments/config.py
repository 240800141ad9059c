"""What a run is: one frozen, validated value that a file or the command line spells.

``config.json`` in a run folder is :meth:`RunConfig.to_dict`: ``task``, ``recipe``, ``pattern``, ``seed``,
``steps`` and all the rest are flat keys; ``options`` is a nested table with the recipe options that were
given, and ``task_options`` one with the task's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch

from nmstep.experiments import schema
from nmstep.experiments.options import RECIPES, RecipeName, RecipeOptions
from nmstep.names import did_you_mean
from nmstep.patterns import NMPattern
from nmstep.tasks import Schedule, TaskDefaults
from nmstep.tasks.registry import check_name

__all__ = ["RunConfig", "TrainingConfig"]

_LEAST = 10  # steps between evaluations, or checkpoints, of a run too short for a share of it
Scalar = int | float | bool | str | None


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all runs of a comparison share.

    Args:
        task: name of the workload, such as digits; an unknown one is answered with all there are.
        data: folder or hub name of the data; none for what the package ships.
        task_options: the task's own options, such as the kind of model.
        steps: optimizer steps; none for the task's default.
        batch_size: examples a step; none for the task's default.
        lr: peak learning rate of AdamW; none for the task's default.
        weight_decay: weight decay, decoupled in AdamW; none for the task's default.
        optimizer: adamw, or sgd with momentum, with which no variance can be frozen.
        momentum: of sgd.
        betas: decay rates of Adam's two moments.
        eps: floor outside the root of Adam's denominator.
        schedule: learning rate after the warm-up: constant, a half cosine or a line to zero, or falling with
            the inverse root of the step; none for the task's default.
        warmup: optimizer steps over which the learning rate rises to its peak; none for the task's default.
        clip_norm: largest norm of all gradients together; none to leave them as they are.
        init: weights to start from: a run folder or a safetensors file; none for the task's own.
        device: cpu, cuda, or another that torch knows; none for a GPU where there is one.
        precision: fp32, or bf16 for forward passes under autocast; weights and optimizer stay fp32.
        eval_every: optimizer steps between evaluations; none for a twentieth of the run, but 10 at least.
        checkpoint_every: optimizer steps between checkpoints; 0 for one at the end only; none for a tenth
            of the run, but 10 at least.
        on_nonfinite: what a NaN or infinite gradient does: stop the run, leave out the step, or nothing.
        on_indivisible: what happens to a layer that M does not divide: left dense, an error, or padded.
        include: names or globs of the only parameters that become sparse; none for the task's choice.
        exclude: names or globs of parameters that stay dense.
        threads: torch's CPU threads; none for torch's own choice. Bit-equal results need equal threads.
        options: options of the recipe.

    Raises:
        ValueError: a value has the wrong type or is out of range.
    """

    task: str = "digits"
    data: str | None = None
    task_options: dict[str, Scalar] = field(default_factory=dict)
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Schedule | None = None
    warmup: int | None = None
    clip_norm: float | None = None
    init: str | None = None
    device: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_every: int | None = None
    checkpoint_every: int | None = None
    on_nonfinite: Literal["raise", "skip", "ignore"] = "raise"
    on_indivisible: Literal["dense", "error", "pad"] = "dense"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    threads: int | None = None
    options: RecipeOptions = field(default_factory=RecipeOptions)

    def __post_init__(self) -> None:
        schema.check_types(self)
        check_name(self.task)
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("weight_decay", 0),
            ("eps", 0),
            ("warmup", 0),
            ("eval_every", 1),
            ("checkpoint_every", 0),
            ("threads", 1),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name}={value!r}: expected at least {least}")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r}: expected a number above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"momentum={self.momentum!r}: expected a number from 0 up to, but not including, 1"
            )
        self._check_device()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas!r}: expected two numbers from 0 up to, but not including, 1")

    def _check_device(self) -> None:
        try:
            device = torch.device(self.device or "cpu")
        except RuntimeError:
            raise ValueError(
                f"device={self.device!r}: expected a device of torch, as cpu or cuda:1"
            ) from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: torch {torch.__version__} finds no GPU here; use cpu")

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON values."""
        return schema.to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "") -> Self:
        """Returns the configuration that :meth:`to_dict` described; keys left out take their defaults.

        Args:
            values: JSON values.
            source: the file they come from, for error messages.

        Raises:
            ValueError: a key is unknown, or a value is not acceptable.

        Example:
            >>> RunConfig.from_dict({"stpes": 100}, source="run.toml")
            Traceback (most recent call last):
                ...
            ValueError: run.toml: unknown key 'stpes'; did you mean 'steps'?
        """
        return schema.from_dict(cls, values, source=source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Returns the configuration in a ``.toml`` or ``.json`` file.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no valid configuration; the message names file and key.
        """
        return cls.from_dict(schema.read_file(path), source=os.fspath(path))


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """One training run.

    Args:
        recipe: how the masks are learned.
        pattern: N weights kept of every M, such as 2:4. The dense recipe needs none; one given to it is
            what its plan is written for.
        plan_file: a plan saved by ``nmstep plan --out``, in place of a pattern.
        seed: of the model's weights and of the order of the data.

    Raises:
        ValueError: as :class:`TrainingConfig`; or the pattern is missing or cannot be read, or an option
            belongs to another recipe.

    Example:
        >>> RunConfig(recipe="sr-ste", pattern="1:16", options=RecipeOptions(refine=1e-4)).options.refine
        0.0001
        >>> RunConfig(recipe="step")
        Traceback (most recent call last):
            ...
        ValueError: recipe 'step' needs a pattern, as in pattern='2:4' (or a plan_file)
    """

    recipe: RecipeName = "step"
    pattern: str | None = None
    plan_file: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            hint = did_you_mean(str(self.recipe), RECIPES)
            raise ValueError(f"recipe={self.recipe!r}: there is no such recipe; {hint}")
        super().__post_init__()
        if self.seed < 0:
            raise ValueError(f"seed={self.seed!r}: expected at least 0")
        self._check_plan()
        self.options.check_for(self.recipe)

    def _check_plan(self) -> None:
        if self.pattern is not None:
            object.__setattr__(self, "pattern", str(NMPattern.parse(self.pattern)))
        if self.plan_file is not None:
            given = [name for name in ("pattern", "include", "exclude") if getattr(self, name)]
            if given:
                raise ValueError(f"plan_file says what becomes sparse; leave out {' and '.join(given)}")
        elif self.pattern is None:
            if self.recipe != "dense":
                raise ValueError(
                    f"recipe {self.recipe!r} needs a pattern, as in pattern='2:4' (or a plan_file)"
                )
            if self.include or self.exclude:
                raise ValueError("include and exclude say where a pattern applies, but no pattern is given")

    def resolve(self, defaults: TaskDefaults) -> RunConfig:
        """Returns this configuration with all that depends on task and machine filled in.

        Args:
            defaults: of the task that it names.
        """
        steps = self.steps or defaults.steps
        by_pattern = self.pattern is not None and not self.include
        return replace(
            self,
            include=defaults.include if by_pattern else self.include,
            schedule=self.schedule or defaults.schedule,
            warmup=defaults.warmup if self.warmup is None else self.warmup,
            device=self.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            steps=steps,
            batch_size=self.batch_size or defaults.batch_size,
            lr=defaults.lr if self.lr is None else self.lr,
            weight_decay=defaults.weight_decay if self.weight_decay is None else self.weight_decay,
            eval_every=self.eval_every or max(_LEAST, steps // 20),
            checkpoint_every=max(_LEAST, steps // 10)
            if self.checkpoint_every is None
            else self.checkpoint_every,
        )
