"""A configuration as the command line that gives it."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, Field, fields
from typing import Any

from nmstep.experiments import RecipeOptions, RunConfig

__all__ = ["train_command"]


def train_command(config: RunConfig) -> str:
    """Returns the ``nmstep train`` command of a run, with its task and a flag for whatever is not at its default.

    Example:
        >>> train_command(RunConfig(recipe="dense", lr=5e-5, betas=(0.9, 0.98)))
        'nmstep train --task digits --lr 5e-05 --betas 0.9 0.98 --recipe dense'
    """
    words = ["nmstep", "train"]
    for field in (*fields(RunConfig), *fields(RecipeOptions)):
        owner: Any = config.options if field in fields(RecipeOptions) else config
        value = getattr(owner, field.name)
        if field.name != "options" and (field.name == "task" or value != _default(field)):
            words += [f"--{field.name.replace('_', '-')}", *_texts(value)]
    return shlex.join(words)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}={_text(item)}" for key, item in value.items()]
    return [_text(item) for item in value] if isinstance(value, tuple) else [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
