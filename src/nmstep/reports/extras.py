"""Imports what only reports need."""

from __future__ import annotations

from typing import Any

from nmstep import packages

__all__ = ["require"]


def require(module: str) -> Any:
    """Returns the imported module, as :func:`nmstep.packages.require` does.

    Args:
        module: dotted name, such as ``"matplotlib.figure"``.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    return packages.require(module, "reports")
