"""Libraries that show progress or notes while they load, silenced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_datasets(datasets: Any) -> Iterator[None]:
    """Hides the progress bars of `datasets` for a `with` block, then restores what was before."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def quiet_transformers(transformers: Any) -> Iterator[None]:
    """Hides the progress bars and all but the errors of `transformers`, then restores what was before."""
    logging = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
