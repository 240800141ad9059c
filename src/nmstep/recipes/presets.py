"""The published recipes under their papers' names, as presets of the one state machine."""

from __future__ import annotations

from typing import Literal

import torch

from nmstep.recipes.recipe import Pattern, Recipe
from nmstep.recipes.schedule import Halving
from nmstep.switching import AutoSwitch, Switch, SwitchAt

__all__ = ["ASP", "SRSTE", "STE", "STEP", "DecayingMask", "Dense"]


def Dense() -> Recipe:
    """Returns the recipe that never masks: the baseline, with its trace recorded.

    Example:
        >>> Dense().switch is None
        True
    """
    return Recipe(name="Dense", pattern=None, switch=None)


def ASP(pattern: Pattern, start: int = 0) -> Recipe:
    """Returns the one-shot recipe: the mask is chosen once, and pruned weights stay zero.

    Args:
        pattern: N kept of M, or a plan.
        start: optimizer steps before the mask is chosen; 0 for a pretrained model.

    Raises:
        TypeError: ``pattern`` is none.
        ValueError: the pattern cannot be read, or ``start`` is negative.

    Source:
        ASP (Mishra et al. 2021).
    """
    return Recipe(name="ASP", pattern=pattern, switch=SwitchAt(start), mask="once")


def STE(pattern: Pattern) -> Recipe:
    """Returns the plain straight-through recipe: the mask is chosen anew after each step, from the start.

    Args:
        pattern: N kept of M, or a plan.

    Raises:
        TypeError: ``pattern`` is none.
        ValueError: the pattern cannot be read.

    Source:
        Bengio et al. 2013; SR-STE (Zhou et al. 2021), Eq. 8 without its last term.
    """
    return Recipe(name="STE", pattern=pattern)


def SRSTE(pattern: Pattern, refine: float = 2e-4) -> Recipe:
    """Returns the sparse-refined straight-through recipe.

    The term ``λ (1 − Π) ⊙ w`` is added to the gradient once per optimizer step, so that it does not
    depend on gradient accumulation, loss scaling or the number of ranks.

    Args:
        pattern: N kept of M, or a plan. With a DominoSearch plan that paper uses ``refine=5e-4``.
        refine: λ.

    Raises:
        TypeError: ``pattern`` is none.
        ValueError: the pattern cannot be read, or ``refine`` is negative or infinite.

    Source:
        SR-STE (Zhou et al. 2021), Eq. 8.
    Deviation:
        The published eight-GPU script summed the term over its ranks and so trained with 8 λ.
    """
    return Recipe(name="SR-STE", pattern=pattern, refine=refine)


def DecayingMask(pattern: Pattern, dense_steps: int = 0, *, interval: int) -> Recipe:
    """Returns the recipe that prunes gradually: M−1:M first, then M/2^s of M down to N.

    Args:
        pattern: N kept of M at the end, or a plan.
        dense_steps: optimizer steps before the first mask.
        interval: optimizer steps that each stage lasts.

    Raises:
        TypeError: ``pattern`` is none.
        ValueError: the pattern cannot be read, or a number of steps is out of range.

    Source:
        Kao et al. 2022.
    """
    return Recipe(
        name="DecayingMask",
        pattern=pattern,
        switch=SwitchAt(dense_steps),
        schedule=Halving(interval=interval),
    )


def STEP(
    pattern: Pattern,
    total_steps: int | None = None,
    *,
    switch: Switch | None = None,
    freeze_variance: bool = True,
    freeze: Literal["all", "sparse"] = "all",
    correct_bias: bool = True,
    eps_root: float = 1e-8,
    preconditioner_dtype: torch.dtype | None = None,
) -> Recipe:
    """Returns STEP: dense Adam until the variance has settled, then masks over the frozen variance.

    Args:
        pattern: N kept of M, or a plan.
        total_steps: planned optimizer steps; AutoSwitch's clipping needs them.
        switch: when the masks start; ``AutoSwitch()`` by default.
        freeze_variance: False keeps updating the variance (the paper's Fig. 8).
        freeze: freeze the variance of all of the optimizer's parameters, or of the sparse ones only.
        correct_bias: freeze the bias-corrected variance ``v̂``.
        eps_root: the floor inside the root in the frozen phase, whatever the optimizer's own. It decides
            whether STEP works: a weight that was idle before the switch has a v* near zero, and with
            torch's floor of 1e-8 outside the root its first real gradient throws it out of range.
        preconditioner_dtype: ``torch.bfloat16`` holds the frozen variance in half a word for each weight instead of
            the parameter's own dtype (None).

    Raises:
        TypeError: ``pattern`` or ``switch`` is none.
        ValueError: the pattern cannot be read, ``total_steps`` is missing where clipping needs it, the switch is
            at step 0, or a number is out of range.

    Source:
        STEP (Lu et al. 2023), Alg. 1 and 2.
    Deviation:
        Alg. 1 line 11 freezes the uncorrected variance (``correct_bias=False``); see
        :meth:`nmstep.AdamW.freeze_variance_`.

    Example:
        >>> STEP("2:4")
        Traceback (most recent call last):
            ...
        ValueError: AutoSwitch(clip=(0.1, 0.5)) needs to know how long training lasts: give the recipe ...
    """
    return Recipe(
        name="STEP" if freeze_variance else "STEP (variance updated)",
        pattern=pattern,
        switch=AutoSwitch() if switch is None else switch,
        freeze=freeze if freeze_variance else "none",
        correct_bias=correct_bias,
        eps_root=eps_root,
        preconditioner_dtype=preconditioner_dtype,
        total_steps=total_steps,
    )
