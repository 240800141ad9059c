"""Running an ONNX file in onnxruntime, and how far its outputs are from torch's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nmstep.deploy.onnx_inputs import Inputs
from nmstep.packages import require

__all__ = ["apart", "open_session", "outputs_apart"]


def open_session(path: Path) -> Any:
    """Returns an onnxruntime session on the CPU.

    Raises:
        ValueError: onnxruntime does not take the file; the message has its reason.
        ImportError: it is not installed.
    """
    runtime = require("onnxruntime", "checking an ONNX export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class of their own in common
        raise ValueError(f"onnxruntime does not run what was exported: {error}") from error


@torch.no_grad()
def outputs_apart(session: Any, model: nn.Module, inputs: Inputs) -> float:
    """Returns the largest difference of an output from torch's, over the largest value of that output.

    Args:
        session: as :func:`open_session` returns it.
        model: that was exported.
        inputs: to run both on.

    Raises:
        ValueError: onnxruntime fails on these inputs, or gives other outputs in number, shape or type.
    """
    expected = [
        leaf for leaf in tree_leaves(model(*inputs.args, **inputs.kwargs)) if isinstance(leaf, Tensor)
    ]
    feeds = {item.name: inputs.tensors[item.name].numpy() for item in session.get_inputs()}
    try:
        found = [torch.from_numpy(array.copy()) for array in session.run(None, feeds)]
    except Exception as error:
        raise ValueError(f"onnxruntime fails on a batch of {inputs.batch}: {error}") from error
    if len(found) != len(expected):
        raise ValueError(f"the ONNX file has {len(found)} outputs, and the model {len(expected)}")
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"output {place} of the ONNX file is {a.dtype} of shape {tuple(a.shape)} on a batch of "
                f"{inputs.batch}, and the model's is {b.dtype} of shape {tuple(b.shape)}"
            )
    return max((apart(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def apart(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference over the largest finite value; infinite where a value is not a number in one.

    Example:
        >>> apart(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])), apart(torch.tensor([3]), torch.tensor([4]))
        (0.5, inf)
    """
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else math.inf
    found, expected = found.double(), expected.double()
    same = (found == expected) | (found.isnan() & expected.isnan())
    gaps = (found - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf)[~same]
    finite = expected[expected.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return float(gaps.max()) / (largest or 1.0) if gaps.numel() else 0.0
