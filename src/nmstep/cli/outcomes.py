"""Telling how several runs ended, and how to go on after Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Mapping

from nmstep.cli.console import errors, say, say_error, say_warning
from nmstep.experiments import Outcome

__all__ = ["interrupted", "tell_failures", "tell_warnings"]


def interrupted(again: str) -> int:
    """Says how to go on after Ctrl-C and returns the status for it.

    Args:
        again: the command that does the rest.
    """
    say(f"Interrupted; what is finished stays. Go on with: {again}", console=errors)
    return 130


def tell_warnings(outcomes: Mapping[str, Outcome]) -> None:
    """Prints each distinct warning once, with the number of runs that gave it."""
    texts: dict[str, int] = {}
    for outcome in outcomes.values():
        for text in outcome.warnings:
            texts[text] = texts.get(text, 0) + 1
    for text, count in texts.items():
        say_warning(f"{text} ({count} of {len(outcomes)} runs)")


def tell_failures(outcomes: Mapping[str, Outcome]) -> int:
    """Prints why each run that failed did, and returns 1 if there is one, or else 0."""
    failures = {name: outcome for name, outcome in outcomes.items() if outcome.error is not None}
    for name, outcome in failures.items():
        say_error(RuntimeError(f"{name} failed: {outcome.error}"))
        if os.environ.get("NMSTEP_DEBUG") == "1":
            errors.print(outcome.details, markup=False)
    return 1 if failures else 0
