"""What GLUE needs beyond torch: imported when used, named when missing, silenced while it loads."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any


def require(module: str, purpose: str) -> Any:
    """Returns an imported module.

    Args:
        module: dotted name, such as "scipy.stats".
        purpose: what needs it, in the plural, for the message.

    Raises:
        ImportError: if its package is not installed; the message names the extra that brings it.

    >>> require("no_such_package.part", "hub names")
    Traceback (most recent call last):
        ...
    ImportError: hub names need no_such_package, which is not installed: pip install 'nmstep[tasks]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"{purpose} need {package}, which is not installed: pip install 'nmstep[tasks]'"
        ) from error


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
