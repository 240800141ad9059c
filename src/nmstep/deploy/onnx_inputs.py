"""What a model is exported with: example inputs, by the names of its forward, in batches of any size."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["Inputs"]


@dataclass(frozen=True)
class Inputs:
    """A call of a model.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        names: of all of them, as the model's forward has them, with their values.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Tensor | Sequence[Any] | Mapping[str, Any],
        kwargs: Mapping[str, Any] | None,
    ) -> Inputs:
        """Returns the call of a model with these arguments, on the CPU, and in float32 in place of bfloat16.

        Raises:
            ValueError: the model does not take them, its forward does not name them, or there is no tensor.
        """
        args, given = _call(inputs, kwargs or {})
        parameters = inspect.signature(model.forward).parameters
        try:
            names = inspect.signature(model.forward).bind(*args, **given).arguments
        except TypeError as error:
            raise ValueError(
                f"the forward of this {type(model).__name__} does not take these inputs: {error}"
            ) from error
        unnamed = [
            name
            for name in names
            if parameters[name].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        ]
        if unnamed:
            raise ValueError(
                f"the forward of this {type(model).__name__} takes these inputs as *args or **kwargs: export "
                f"a module whose forward names them"
            )
        if any(not isinstance(value, Tensor) and _holds_tensor(value) for value in names.values()):
            raise ValueError(
                "inputs are tensors, one for each argument of forward, and not tensors in lists or dicts"
            )
        if not any(isinstance(value, Tensor) and value.dim() for value in names.values()):
            raise ValueError(
                "export_onnx needs example inputs: at least one tensor with a batch dimension; a tokenizer gives "
                "tensors with return_tensors='pt'"
            )
        return cls(args, dict(given), dict(names))._mapped(_portable)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name; the others are part of the graph."""
        return {name: value for name, value in self.names.items() if isinstance(value, Tensor)}

    @property
    def batch(self) -> int:
        """Size of the first dimension of the first tensor that has one."""
        return next(len(tensor) for tensor in self.tensors.values() if tensor.dim())

    @property
    def batched(self) -> tuple[str, ...]:
        """Names of the tensors that have the batch for their first dimension."""
        return tuple(name for name, t in self.tensors.items() if t.dim() and len(t) == self.batch)

    def with_batch(self, size: int) -> Inputs:
        """Returns the call with as many examples: the first ones, or all of them again and again."""
        batch = self.batch
        rows = torch.arange(size) % max(1, batch)

        def resize(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == batch else value

        return self._mapped(resize)

    def _mapped(self, change: Any) -> Inputs:
        return Inputs(*(tree_map(change, part) for part in (self.args, dict(self.kwargs), dict(self.names))))


def _call(
    inputs: Tensor | Sequence[Any] | Mapping[str, Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns positional and keyword arguments; a dict, such as a tokenizer returns, has all of them by name."""
    if isinstance(inputs, Tensor):
        return (inputs,), kwargs
    if not isinstance(inputs, Mapping):
        return tuple(inputs), kwargs
    twice = inputs.keys() & kwargs.keys()
    if twice:
        raise ValueError(f"{', '.join(map(repr, sorted(twice)))} is in both inputs and kwargs")
    return (), {**inputs, **kwargs}


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(value))


def _portable(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu", torch.float32 if value.dtype == torch.bfloat16 else value.dtype)
