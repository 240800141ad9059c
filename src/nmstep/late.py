"""Reading small tensors from a GPU without making the host wait for it: they are handed out some steps later."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

__all__ = ["LATE_STEPS", "Late"]

#: Steps after which the host reads what a step on a GPU left. By then the GPU has long written it.
LATE_STEPS = 4


class Late:
    """Tensors on their way to the host. What lies on the CPU is handed out at once.

    Example:
        >>> late = Late()
        >>> late.put(1, torch.ones(2))
        >>> late.due(1)
        [(1, tensor([1., 1.]))]
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        self._steps = 0

    def put(self, step: int, values: Tensor) -> None:
        """Sends the values of a step to the host."""
        away = is_away(values)
        self._steps = LATE_STEPS if away else 0
        if not away or values.device.type == "cpu":
            self._queue.append((step, values, None))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        self._queue.append((step, host, event))

    def due(self, step: int) -> list[tuple[int, Tensor]]:
        """Returns the steps whose values are to be read after ``step``, oldest first, and forgets them."""
        found = []
        while self._queue and self._queue[0][0] <= step - self._steps:
            found.append(_arrived(*self._queue.popleft()))
        return found

    def pending(self) -> list[tuple[int, Tensor]]:
        """Returns what is still to be handed out, waiting for it; it stays in the queue."""
        return [_arrived(*entry) for entry in self._queue]

    def drain(self) -> list[tuple[int, Tensor]]:
        """Returns what is still to be handed out, waiting for it, and forgets it."""
        found = self.pending()
        self._queue.clear()
        return found

    def load(self, pending: list[tuple[int, Tensor]]) -> None:
        """Takes back what :meth:`pending` gave."""
        self._queue = deque((step, values, None) for step, values in pending)
        self._steps = LATE_STEPS if pending else 0


def is_away(tensor: Tensor) -> bool:
    """Whether reading a tensor would make the host wait."""
    return tensor.device.type == "cuda"


def _arrived(step: int, values: Tensor, event: torch.cuda.Event | None) -> tuple[int, Tensor]:
    if event is not None:
        event.synchronize()
    return step, values
