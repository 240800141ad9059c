"""Imports what only reports need, with an error that says how to get it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str) -> Any:
    """Returns the imported module.

    Args:
        module: dotted name, such as ``"matplotlib.figure"``.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.

    Example:
        >>> require("no_such_package.part")
        Traceback (most recent call last):
            ...
        ImportError: reports need no_such_package, which is not installed: pip install 'nmstep[cli]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"reports need {package}, which is not installed: pip install 'nmstep[cli]'"
        ) from error
