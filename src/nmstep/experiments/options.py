"""The recipes' names, which options each takes, and the recipe that they spell."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from nmstep.experiments import schema
from nmstep.recipes import ASP, SRSTE, STE, STEP, DecayingMask, Dense, Recipe
from nmstep.recipes.recipe import Pattern
from nmstep.switching import AutoSwitch, NormRatio, RelativeNorm, Switch, SwitchAt

__all__ = ["RECIPES", "RecipeName", "RecipeOptions", "build_recipe"]

RecipeName = Literal["dense", "asp", "ste", "sr-ste", "decaying-mask", "step", "step-updated"]
RECIPES: tuple[str, ...] = get_args(RecipeName)

_SWITCH = ("switch", "threshold", "clip", "window", "require_full_window")
_TAKES: dict[str, tuple[str, ...]] = {
    "dense": (),
    "asp": ("start",),
    "ste": (),
    "sr-ste": ("refine",),
    "decaying-mask": ("dense_steps", "interval"),
    "step": (*_SWITCH, "freeze", "correct_bias", "eps_root", "preconditioner_dtype"),
    "step-updated": _SWITCH,
}
_SWITCH_TAKES: dict[str, tuple[str, ...]] = {
    "auto": ("threshold", "clip", "window", "require_full_window"),
    "auto-geometric": ("threshold", "clip", "window", "require_full_window"),
    "relative-norm": ("threshold",),
    "norm-ratio": ("threshold", "window"),
    "at": (),
}


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Options of the recipes; none for a recipe's own default.

    A span is a number of optimizer steps, or a share of all steps when it is written with a decimal point
    and lies between 0 and 1.

    Args:
        start: ASP: when the mask is chosen, a span; none for 0, which suits a pretrained model.
        refine: SR-STE: strength of the pull on pruned weights; none for 2e-4.
        dense_steps: decaying mask: a span before the first mask; none for 0.
        interval: decaying mask: a span that each stage lasts; none for 0.1.
        switch: STEP: auto, auto-geometric, relative-norm, norm-ratio, or at:SPAN; none for auto.
        threshold: STEP: what the switch compares its statistic with; none for 1e-8 (auto), 0.5
            (relative-norm) or 0.96 (norm-ratio).
        clip: STEP: shares of all steps between which the automatic switch must fall, or off; none for
            0.1 0.5.
        window: STEP: steps that the switch averages, or looks back; none for 1 / (1 - beta2).
        require_full_window: STEP: whether the automatic switch waits for a full window; none for yes.
        freeze: STEP: freeze the variance of all parameters, or of sparse ones only; none for all.
        correct_bias: STEP: whether the bias-corrected variance is frozen; none for yes.
        eps_root: STEP: floor inside the root once the variance is frozen; none for 1e-8.
        preconditioner_dtype: STEP: what the frozen variance is held in; none for the weights' own dtype.

    Raises:
        ValueError: a value has the wrong type or is out of range.
    """

    start: int | float | None = None
    refine: float | None = None
    dense_steps: int | float | None = None
    interval: int | float | None = None
    switch: str | None = None
    threshold: float | None = None
    clip: tuple[float, float] | Literal["off"] | None = None
    window: int | None = None
    require_full_window: bool | None = None
    freeze: Literal["all", "sparse"] | None = None
    correct_bias: bool | None = None
    eps_root: float | None = None
    preconditioner_dtype: Literal["bfloat16"] | None = None

    def __post_init__(self) -> None:
        schema.check_types(self)
        for name in ("start", "dense_steps", "interval"):
            _check_span(name, getattr(self, name))
        if self.switch is not None:
            self._check_switch(self.switch)

    def _check_switch(self, switch: str) -> None:
        kind, _, span = switch.partition(":")
        if kind not in _SWITCH_TAKES or (kind == "at") != bool(span):
            known = ["auto", "auto-geometric", "relative-norm", "norm-ratio", "at:STEP", "at:SHARE"]
            raise ValueError(f"switch={switch!r}: expected one of {', '.join(known)}, as in at:300 or at:0.2")
        if kind == "at":
            _check_span("switch", _span(switch))

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that are not none."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def check_for(self, recipe: str) -> None:
        """Raises ValueError if an option is given that the recipe, or its switch, does not take."""
        for name in self.given:
            if name not in _TAKES[recipe]:
                takers = [other for other, takes in _TAKES.items() if name in takes]
                raise ValueError(
                    f"recipe {recipe!r} takes no option {name!r}; it belongs to {', '.join(takers)}"
                )
        kind = (self.switch or "auto").partition(":")[0]
        for name in set(self.given) & set(_SWITCH_TAKES["auto"]) - set(_SWITCH_TAKES[kind]):
            raise ValueError(f"switch {self.switch!r} takes no option {name!r}; leave it out")

    def only_for(self, recipe: str) -> RecipeOptions:
        """Returns the options that the recipe takes; the others are none."""
        return replace(self, **{name: None for name in self.given if name not in _TAKES[recipe]})


def build_recipe(name: str, pattern: Pattern | None, options: RecipeOptions, *, steps: int) -> Recipe:
    """Returns the recipe that a name and its options spell.

    Args:
        name: one of ``RECIPES``.
        pattern: ``"n:m"`` or a plan; not used by the dense recipe.
        options: what differs from the recipe's defaults.
        steps: optimizer steps of the whole run, for spans given as shares and for AutoSwitch.

    Raises:
        ValueError: an option is out of range, or the masks would start after the last step.
    """
    if name == "dense":
        return Dense()
    assert pattern is not None
    if name == "asp":
        return ASP(pattern, start=_within("start", options.start, steps))
    if name == "ste":
        return STE(pattern)
    if name == "sr-ste":
        return SRSTE(pattern, **_some(options, "refine"))
    if name == "decaying-mask":
        interval = _in_steps(0.1 if options.interval is None else options.interval, steps)
        return DecayingMask(
            pattern, _within("dense_steps", options.dense_steps, steps), interval=max(1, interval)
        )
    kept = {} if name == "step-updated" else _some(options, "freeze", "correct_bias", "eps_root")
    if options.preconditioner_dtype is not None:
        kept["preconditioner_dtype"] = getattr(torch, options.preconditioner_dtype)
    switch = _build_switch(options, steps)
    return STEP(pattern, steps, switch=switch, freeze_variance=name == "step", **kept)


def _build_switch(options: RecipeOptions, steps: int) -> Switch:
    kind = options.switch or "auto"
    if kind.startswith("at:"):
        return SwitchAt(_within("switch", _span(kind), steps))
    if kind == "relative-norm":
        return RelativeNorm(**_some(options, threshold="bound"))
    if kind == "norm-ratio":
        return NormRatio(**_some(options, "window", threshold="bound"))
    chosen = _some(options, "threshold", "clip", "window", "require_full_window")
    if chosen.get("clip") == "off":
        chosen["clip"] = None
    return AutoSwitch(mean="geometric" if kind == "auto-geometric" else "arithmetic", **chosen)


def _some(options: RecipeOptions, *names: str, **renamed: str) -> dict[str, Any]:
    """Returns the given ones of these options, under the name that the recipe knows them by."""
    both = {**{name: name for name in names}, **renamed}
    values = {theirs: getattr(options, ours) for ours, theirs in both.items()}
    return {name: value for name, value in values.items() if value is not None}


def _span(switch: str) -> int | float:
    text = switch.removeprefix("at:")
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"switch={switch!r}: expected at:STEP or at:SHARE, as in at:300 or at:0.2") from None


def _check_span(name: str, span: int | float | None) -> None:
    if span is not None and not (0 <= span <= 1 if isinstance(span, float) else span >= 0):
        raise ValueError(f"{name}={span!r}: expected steps >= 0, or a share of all steps from 0.0 to 1.0")


def _in_steps(span: int | float, steps: int) -> int:
    return round(span * steps) if isinstance(span, float) else span


def _within(name: str, span: int | float | None, steps: int) -> int:
    step = _in_steps(span or 0, steps)
    if step >= steps:
        raise ValueError(f"{name}={span!r} puts the first mask at step {step}, but training ends at {steps}")
    return step
