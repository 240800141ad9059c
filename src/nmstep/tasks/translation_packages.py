"""Imports what only the translation task needs, with an error that says how to get it."""

from __future__ import annotations

import importlib
from typing import Any


def require(package: str, use: str) -> Any:
    """Returns the imported package.

    Args:
        package: its name, such as "sacrebleu".
        use: what needs it, as the subject of the error's sentence.

    Raises:
        ImportError: if it is not installed; the message names the extra that brings it.

    >>> require("no_such_package", "an example")
    Traceback (most recent call last):
        ...
    ImportError: an example needs no_such_package, which is not installed: pip install 'nmstep[tasks]'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"{use} needs {package}, which is not installed: pip install 'nmstep[tasks]'"
        ) from error
