"""Moving and casting models whose layers share tensors, so that they share them still."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["once"]

# What a function made of another tensor, as long as both are there: torch calls one function on all modules.
_made: WeakKeyDictionary[Callable[[Tensor], Tensor], WeakIdKeyDictionary] = WeakKeyDictionary()


def once(fn: Callable[[Tensor], Tensor], *, exact: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Returns ``fn`` for ``nn.Module._apply``, which returns the same for a buffer that it is given again.

    torch does so for parameters, by writing into them, and not for buffers.

    Args:
        fn: casts or moves a tensor.
        exact: a buffer that is moved and keeps its dtype.
    """
    try:
        made = _made.setdefault(fn, WeakIdKeyDictionary())
    except TypeError:  # some callables have no weak references, or no hash
        made = WeakIdKeyDictionary()

    def apply(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return fn(tensor)
        found: Tensor | None = made.get(tensor)
        if found is None:
            found = fn(tensor)
            if tensor is exact and found.dtype is not tensor.dtype:
                found = tensor.to(found.device)
            if found is not tensor:  # which would keep itself
                made[tensor] = found
        return found

    return apply
