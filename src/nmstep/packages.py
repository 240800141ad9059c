"""Optional packages: imported when used, named with the extra that brings them when missing."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["EXTRAS", "require"]

#: The extra of nmstep that brings a package; the smallest, where several do.
EXTRAS = {
    **dict.fromkeys(("jinja2", "matplotlib", "numpy", "rich", "safetensors", "scipy", "tyro"), "cli"),
    **dict.fromkeys(
        ("datasets", "PIL", "pyarrow", "sacrebleu", "sklearn", "tokenizers", "transformers"), "tasks"
    ),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "lightning": "lightning",
    "tensorboard": "tensorboard",
}


def require(module: str, purpose: str, *, extra: str | None = None) -> Any:
    """Returns the imported module.

    Args:
        module: dotted name, such as ``"scipy.stats"``.
        purpose: what needs it, for the message.
        extra: of nmstep, which installs it; by default the one in :data:`EXTRAS`.

    Raises:
        ImportError: its package is not installed; the message names the extra.

    Example:
        >>> require("no_such_package.part", "hub names", extra="tasks")
        Traceback (most recent call last):
            ...
        ImportError: no_such_package is needed for hub names and is not installed: pip install 'nmstep[tasks]'
    """
    package = module.partition(".")[0]
    extra = extra or EXTRAS.get(package, "tasks")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"{package} is needed for {purpose} and is not installed: pip install 'nmstep[{extra}]'"
        ) from error
