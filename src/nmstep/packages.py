"""Optional packages: imported when used, named with the extra that brings them when missing."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, purpose: str, *, extra: str = "tasks") -> Any:
    """Returns the imported module.

    Args:
        module: dotted name, such as ``"scipy.stats"``.
        purpose: what needs it, for the message.
        extra: of nmstep, which installs it.

    Raises:
        ImportError: its package is not installed; the message names the extra.

    Example:
        >>> require("no_such_package.part", "hub names")
        Traceback (most recent call last):
            ...
        ImportError: no_such_package is needed for hub names and is not installed: pip install 'nmstep[tasks]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"{package} is needed for {purpose} and is not installed: pip install 'nmstep[{extra}]'"
        ) from error
