"""A recipe: five independent choices that give every published way to learn N:M masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from nmstep.patterns import NMPattern
from nmstep.plan import SparsityPlan
from nmstep.recipes.schedule import Constant, Schedule
from nmstep.switching import Switch, SwitchAt

__all__ = ["Pattern", "Recipe"]

Pattern = str | NMPattern | SparsityPlan


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """When masks start, which pattern, how often the mask is chosen, and what the optimizer does.

    The presets (:func:`~nmstep.STEP` and its siblings) are the usual way to get one.

    Args:
        name: what reports and error messages call it.
        pattern: ``"n:m"``, an ``NMPattern``, or a whole plan; None for no masks at all.
        switch: when the masks start; None for never.
        schedule: how the pattern changes from then on.
        mask: ``"every_step"`` chooses the mask anew after each step and lets pruned weights learn by
            the straight-through gradient; ``"once"`` keeps the first mask and the pruned weights at zero.
        refine: λ of SR-STE's term ``λ (1 − Π) ⊙ w``, added to the gradient once per step.
        freeze: whose variance is frozen at the switch: nobody's, all parameters', or the sparse ones'.
        correct_bias: freeze the bias-corrected variance.
        eps_root: floor inside the root of the frozen phase.
        preconditioner_dtype: what the frozen variance is held in: the parameter's own dtype (None), or
            ``torch.bfloat16``, half a word for each weight.
        total_steps: planned optimizer steps, where a switch needs them.

    Raises:
        TypeError: the pattern or the switch is none.
        ValueError: a field is out of range, or the fields contradict each other.
    """

    name: str
    pattern: Pattern | None
    switch: Switch | None = field(default_factory=lambda: SwitchAt(0))
    schedule: Schedule = field(default_factory=Constant)
    mask: Literal["every_step", "once"] = "every_step"
    refine: float = 0.0
    freeze: Literal["none", "all", "sparse"] = "none"
    correct_bias: bool = True
    eps_root: float = 1e-8
    preconditioner_dtype: torch.dtype | None = None
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", NMPattern.parse(self.pattern))
        if self.pattern is not None and not isinstance(self.pattern, (NMPattern, SparsityPlan)):
            raise TypeError(
                f"{self.name}: pattern must be 'n:m', an NMPattern or a SparsityPlan, got {self.pattern!r}"
            )
        if (self.pattern is None) != (self.switch is None):
            raise ValueError(f"{self.name}: a pattern needs a switch and a switch needs a pattern")
        for name, number in (("refine", self.refine), ("eps_root", self.eps_root)):
            if not 0.0 <= number < math.inf:
                raise ValueError(f"{self.name}({name}={number!r}): expected a finite number >= 0")
        for name, value, allowed in (
            ("mask", self.mask, ("every_step", "once")),
            ("freeze", self.freeze, ("none", "all", "sparse")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"{self.name}({name}={value!r}): expected one of {', '.join(map(repr, allowed))}"
                )
        if self.preconditioner_dtype not in (None, torch.bfloat16):
            raise ValueError(
                f"{self.name}(preconditioner_dtype={self.preconditioner_dtype!r}): expected torch.bfloat16 or "
                f"None; float16 cannot hold how small a variance is"
            )
        if self.preconditioner_dtype is not None and self.freeze == "none":
            raise ValueError(
                f"{self.name} freezes no variance that preconditioner_dtype could be the dtype of"
            )
        if self.total_steps is not None and (type(self.total_steps) is not int or self.total_steps < 1):
            raise ValueError(f"{self.name}(total_steps={self.total_steps!r}): expected an integer >= 1")
        if self.switch is not None and not hasattr(self.switch, "detector"):
            raise TypeError(
                f"{self.name}(switch={self.switch!r}): expected a switch such as AutoSwitch(), NormRatio() or "
                f"SwitchAt(1000)"
            )
        if self.switch is not None:
            self.switch.check(self.total_steps)
            if self.freeze != "none" and isinstance(self.switch, SwitchAt) and self.switch.step == 0:
                raise ValueError(
                    f"{self.name} freezes the variance at the switch, but at step 0 there is none yet: "
                    f"switch at step 1 or later"
                )

    def describe(self) -> dict[str, Any]:
        """Returns what must agree between a saved state and the recipe that continues it."""
        return {
            "name": self.name,
            "switch": repr(self.switch),
            "schedule": repr(self.schedule),
            "mask": self.mask,
            "refine": self.refine,
            "freeze": self.freeze,
            "correct_bias": self.correct_bias,
            "eps_root": self.eps_root,
            "preconditioner_dtype": self.preconditioner_dtype and str(self.preconditioner_dtype),
        }
