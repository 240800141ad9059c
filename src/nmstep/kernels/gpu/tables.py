"""The small tables that launches read: sent to their device once, and held for the CUDA graphs that read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from nmstep import late

__all__ = ["Tables", "to_device"]

_KNOWN = 64  # tables remembered; a step has a few


class Tables:
    """Tables on devices. One that is the same as before, as a model's in training mostly is, does not travel again.

    While a CUDA graph is captured, pinned memory must not be allocated, and what replays read has to stay. So what
    differs from the step before (the addresses of gradients) goes through room that was set apart after that step;
    each replay copies it to the device from there again. Everything that a capture used is held from then on.

    Example:
        >>> tables = Tables()
        >>> first = tables.get(torch.device("cpu"), "a", lambda: torch.tensor([1, 2]))
        >>> tables.get(torch.device("cpu"), "a", lambda: torch.tensor([1, 2])) is first
        True
    """

    def __init__(self) -> None:
        self._known: dict[tuple[torch.device, Hashable], Tensor] = {}
        self._asked = 0  # bytes, since room was last set apart
        self._room: Tensor | None = None
        self._used = 0
        self._held: list[Tensor] = []

    def get(self, device: torch.device, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Returns a table on a device.

        Args:
            device: where to.
            key: of what the table is made.
            make: returns it on the CPU.

        Raises:
            RuntimeError: a CUDA graph is captured, and there is no room left for a table that was not there before.
        """
        captured = late.is_capturing()
        found = self._known.pop((device, key), None)
        if found is None:
            made = make()
            if captured:  # not known from now on: the values are there in replays alone
                return self._through_room(made, device)
            found = to_device(made, device)
        self._known[device, key] = found  # as the latest
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]
        self._asked += _rounded(found.nbytes)
        if captured:
            self._held.append(found)
        return found

    def make_room(self, device: torch.device) -> None:
        """Sets room apart for a capture, as much as the tables need that were asked for since the last time."""
        if self._room is None or self._room.numel() < self._asked:
            self._room = torch.empty(self._asked, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._asked = self._used = 0

    def hold_room(self) -> None:
        """Keeps the room for the graph that was captured; the next one needs other room."""
        if self._room is not None:
            self._held.append(self._room)
        self._room = None
        self._asked = self._used = 0

    def _through_room(self, made: Tensor, device: torch.device) -> Tensor:
        start, self._used = self._used, self._used + _rounded(made.nbytes)
        if self._room is None or self._used > self._room.numel():
            raise RuntimeError(
                "a CUDA graph is being captured, and there is no room for a table that its kernels read: do the "
                "same once without a capture first"
            )
        piece = self._room[start : start + made.nbytes].view(made.dtype).view(made.shape)
        return piece.copy_(made).to(device, non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a CPU tensor's values on a device, without waiting for it."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _rounded(size: int) -> int:
    return -(-size // 16) * 16
