"""Which kernels are here, and what they can take: the compiled ones on the CPU, Triton's on a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from nmstep.names import did_you_mean
from nmstep.patterns import NMPattern

__all__ = ["Engine", "Status", "are_taken", "engine_for", "kernels", "layout", "ordinary", "place"]
__all__ += ["same_order", "status"]

_ENVIRONMENT = "NMSTEP_KERNELS"
_ORDINARY = (nn.Parameter, Tensor)
Engine = Literal["compiled", "triton"]
_DTYPES = {
    "compiled": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """Which kernels work on tensors in this computer's own memory.

    Args:
        active: the instruction set of the compiled kernels, or "torch" where plain torch does the work.
        why: a reason for people.
        usable: what ``NMSTEP_KERNELS`` can ask for here.
        threads: whose threads the kernels use: ``"torch"``, ``"own"``, or None without kernels.
        on_gpu: what works on tensors on a GPU: ``"triton"`` or ``"torch"``.
    """

    active: str
    why: str
    usable: tuple[str, ...]
    threads: str | None = None
    on_gpu: str = "torch"


def kernels() -> ModuleType | None:
    """Returns the compiled kernels, or None where plain torch is to do the work."""
    return _load()[0]


def status() -> Status:
    """Returns which kernels are active, and why.

    Raises:
        ValueError: the environment variable ``NMSTEP_KERNELS`` asks for what is not there.
    """
    return _load()[1]


def engine_for(device: torch.device) -> Engine | None:
    """Returns what works on tensors of a device, or None where plain torch does."""
    if device.type == "cuda":
        return "triton" if status().on_gpu == "triton" else None
    if device.type != "cpu" or status().active == "torch":
        return None
    return "triton" if status().active == "triton" else "compiled"


@cache
def _load() -> tuple[ModuleType | None, Status]:
    asked = os.environ.get(_ENVIRONMENT, "")
    module, problem = _import()
    has_triton = asked != "torch" and find_spec("triton") is not None
    on_gpu = "triton" if has_triton and torch.cuda.is_available() else "torch"
    interpreted = has_triton and os.environ.get("TRITON_INTERPRET") == "1"
    usable = (*([] if module is None else module.variants()), *(["triton"] if interpreted else []), "torch")
    if asked and asked not in usable:
        more = f" ({problem})" if problem else ""
        raise ValueError(f"{_ENVIRONMENT}={asked!r}: {did_you_mean(asked, usable)}{more}")
    if asked in ("torch", "triton"):
        return None, Status(active=asked, why=f"{_ENVIRONMENT}={asked}", usable=usable, on_gpu=on_gpu)
    if module is None:
        return None, Status(active="torch", why=problem, usable=usable, on_gpu=on_gpu)
    if asked:
        module.use(asked)
    why = f"{_ENVIRONMENT}={asked}" if asked else "the widest that this processor has"
    return module, Status(
        active=module.active(), why=why, usable=usable, threads=module.thread_pool(), on_gpu=on_gpu
    )


def _import() -> tuple[Any, str]:
    """Returns the compiled module and "", or None and why there is none."""
    try:
        return import_module("nmstep.kernels._cpu"), ""
    except ImportError as error:
        return None, f"not compiled when nmstep was installed, or not loadable: {error}"


def are_taken(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these tensors together.

    They must be ordinary tensors (no subclasses) of one shape, device and dtype (float32 or bfloat16; float16 on a
    GPU), without gaps or overlaps, and all in the same order of dimensions.
    """
    first = tensors[0]
    engine = engine_for(first.device)
    return (
        engine is not None
        and first.dtype in _DTYPES[engine]
        and not torch.compiler.is_compiling()
        and all(is_like(t, first) for t in tensors)
        and place(first, 0) is not None
    )


def is_like(tensor: Tensor, first: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether a tensor is an ordinary one of the same device, shape, strides, and dtype unless another is given."""
    return (
        ordinary(tensor)
        and tensor.dtype == (dtype or first.dtype)
        and tensor.device == first.device
        and tensor.shape == first.shape
        and same_order(tensor, first)
    )


def ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is what it says in the memory of its device: no subclass, wrapper, or lazy negation."""
    return (
        type(tensor) in _ORDINARY
        and tensor.layout == torch.strided
        and not is_functorch_wrapped_tensor(tensor)
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )


def same_order(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape lie in memory alike; the stride of a single row says nothing."""
    return a.stride() == b.stride() or all(
        x == y or size == 1 for x, y, size in zip(a.stride(), b.stride(), a.shape, strict=True)
    )


def layout(tensor: Tensor, pattern: NMPattern, dim: int) -> tuple[int, int, int, int, int]:
    """Returns what the kernels know of a tensor that :func:`are_taken` accepts, and of its groups.

    Args:
        tensor: any shape.
        pattern: N kept of M; a group longer than the dimension is the dimension.
        dim: the dimension that groups run along.

    Returns:
        (outer, size, inner) of :func:`place`, N and M.
    """
    lies = place(tensor, dim % tensor.dim())
    assert lies is not None
    m = max(1, min(pattern.m, lies[1]))
    return (*lies, min(pattern.n, m), m)


def place(tensor: Tensor, dim: int) -> tuple[int, int, int] | None:
    """Returns (outer, size, inner): how ``dim`` lies in the memory of a tensor without gaps.

    Args:
        tensor: any strides.
        dim: the dimension that groups run along; not negative.

    Returns:
        The number of values that lie outside of, along, and inside of the dimension; None where the tensor
        has gaps or overlaps.

    Example:
        >>> place(torch.zeros(2, 3, 5), 1), place(torch.zeros(3, 2).t(), 1), place(torch.zeros(4, 4)[:, :2], 1)
        ((2, 3, 5), (1, 3, 2), None)
    """
    return _place(tensor.shape, tensor.stride(), dim)


@lru_cache(maxsize=4096)  # a model has few shapes, and a step asks for each parameter
def _place(shape: tuple[int, ...], strides: tuple[int, ...], dim: int) -> tuple[int, int, int] | None:
    if not shape:
        return (1, 1, 1)
    if 0 in shape:
        return (0, shape[dim], 1)
    expected = inner = 1
    for stride, size, d in sorted(zip(strides, shape, range(len(shape)), strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return None
        if d == dim:
            inner = expected
        expected *= size
    size = shape[dim]
    return (expected // (size * inner), size, inner)
