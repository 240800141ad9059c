"""Reading small tensors from a GPU without making the host wait for it: they are handed out some steps later."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LATE_STEPS", "Late", "is_away", "is_capturing"]

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
        self._queue: deque[_Entry] = deque()

    def put(self, step: int, values: Tensor) -> None:
        """Sends the values of a step to the host."""
        due = step + LATE_STEPS if is_away(values) else step
        if values.device.type != "cuda":
            self._queue.append(_Entry(step, due, values))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        self._queue.append(_Entry(step, due, host, event))

    def due(self, step: int) -> list[tuple[int, Tensor]]:
        """Returns the steps whose values are to be read after ``step``, oldest first, and forgets them."""
        found = []
        while self._queue and self._queue[0].due <= step:
            found.append(self._queue.popleft().arrived())
        return found

    def pending(self) -> list[tuple[int, Tensor]]:
        """Returns what is still to be handed out, waiting for it; it stays in the queue."""
        return [entry.arrived() for entry in self._queue]

    def drain(self) -> list[tuple[int, Tensor]]:
        """Returns what is still to be handed out, waiting for it, and forgets it."""
        found = self.pending()
        self._queue.clear()
        return found

    def load(self, pending: list[tuple[int, Tensor]]) -> None:
        """Takes back what :meth:`pending` gave."""
        self._queue = deque(_Entry(step, step + LATE_STEPS, values) for step, values in pending)


@dataclass(frozen=True)
class _Entry:
    step: int
    due: int
    values: Tensor
    copied: torch.cuda.Event | None = None

    def arrived(self) -> tuple[int, Tensor]:
        """Returns step and values, once they are here."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.step, self.values


def is_away(tensor: Tensor) -> bool:
    """Whether reading a tensor would make the host wait."""
    return tensor.device.type == "cuda"


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured: what is launched now runs when the graph is replayed."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
