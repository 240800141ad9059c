"""All that is called, how often, and the loop that calls it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from soak.calls import (
    configs,
    masks,
    optimizers,
    packing,
    plans,
    saved,
    switches,
    training,
    verifying,
)
from soak.rows import Row, timed

__all__ = ["TARGETS", "fuzz"]

#: What is called: a name, the cases, the check of one case, and how many of ten thousand calls.
TARGETS: list[tuple[str, st.SearchStrategy[Any], Callable[[Any], None], int]] = [
    ("NMPattern", masks.pattern_cases, masks.check_pattern, 800),
    ("nm_mask", masks.mask_cases, masks.check_mask, 2400),
    ("plan", plans.plan_cases, plans.check_plan, 1200),
    ("switches", switches.switch_cases, switches.check_switch, 1000),
    ("recipes", switches.recipe_cases, switches.check_recipe, 600),
    ("AdamW beside torch's", optimizers.optimizer_cases, optimizers.check_optimizer, 800),
    ("sparsify and steps", training.training_cases, training.check_training, 800),
    ("verify", verifying.verify_cases, verifying.check_verify, 600),
    ("pack, unpack", packing.pack_cases, packing.check_pack, 400),
    ("save_packed, load_packed", packing.pack_cases, packing.check_save, 150),
    ("export_dense", packing.pack_cases, packing.check_export, 50),
    ("damaged files", saved.damaged_cases, saved.check_damaged, 1000),
    ("RunConfig", configs.config_cases, configs.check_config, 400),
]


def fuzz(
    name: str, cases: st.SearchStrategy[Any], check: Callable[[Any], None], *, count: int, start: int
) -> Row:
    """Checks ``count`` generated cases; the first that fails is made as small as it gets.

    Args:
        name: of the row.
        cases: draws them.
        check: raises where a case does not hold.
        count: of cases; hypothesis stops early where it knows all that it can draw, and is started anew.
        start: seed of the first round.
    """
    row = Row(f"calls: {name}")
    with timed(row):
        while row.tried < count and not row.failures:
            chosen = random.Random(f"{start} {name} {row.tried}").randrange(2**32)
            _round(row, cases, check, count=count - row.tried, chosen=chosen)
    return row


def _round(
    row: Row, cases: st.SearchStrategy[Any], check: Callable[[Any], None], *, count: int, chosen: int
) -> None:
    failing: list[Any] = []

    @seed(chosen)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        verbosity=Verbosity.quiet,
    )
    @given(cases)
    def all_hold(case: Any) -> None:
        row.tried += not failing
        try:
            check(case)
        except Exception as error:
            failing.append(case)  # what follows is shrinking
            error.add_note(f"for {case!r}")
            raise

    try:
        all_hold()
    except BaseExceptionGroup as group:
        row.failures += [_described(error) for error in group.exceptions]
    except Exception as error:
        row.failures.append(_described(error))


def _described(error: BaseException) -> str:
    notes = " ".join(getattr(error, "__notes__", []))
    return " ".join(f"{type(error).__name__}: {error} {notes}".split())[:2000]
