"""The processes that train one model together, and what they must agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["ProcessGroup", "Ranks"]

#: What :func:`nmstep.sparsify` takes: a group of torch.distributed, ``"world"`` for all ranks, None for no other.
ProcessGroup = Any | Literal["world"] | None

_FAILED = 100
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        TypeError,
        RuntimeError,
        FloatingPointError,
        FileNotFoundError,
        OSError,
        MemoryError,
    )
}


class Ranks:
    """A group of processes; one process alone agrees with itself, at no cost.

    Args:
        group: ``"world"`` for all ranks of torch.distributed, where it is initialised; a process group of
            torch.distributed; None for this process alone.

    Raises:
        ValueError: ``group`` is something else, or this process is not in it.

    Example:
        >>> alone = Ranks(None)
        >>> alone.size, alone.worst(lambda: 1)
        (1, 1)
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.size = 1
        self._group: Any = None
        alone = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        #: The ranks of the group, as torch.distributed counts all of them.
        self.members: tuple[int, ...] = (alone,)
        if group is None or not (dist.is_available() and dist.is_initialized()):
            if group not in (None, "world"):
                raise ValueError(f"process_group={group!r}: torch.distributed is not initialised")
            return
        self._group = dist.group.WORLD if group == "world" else group
        if not isinstance(self._group, dist.ProcessGroup):
            raise ValueError(
                f"process_group={group!r}: expected 'world', a process group of torch.distributed that this rank "
                f"is in, or None for a model that this process trains alone"
            )
        self.size = dist.get_world_size(self._group)
        self.members = tuple(dist.get_process_group_ranks(self._group))
        self._devices = [torch.device(device).type for device in self._group._device_types]

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of every rank's ``values``, which no rank's are changed by; on a GPU, without waiting."""
        return self._reduced(values, dist.ReduceOp.SUM) if self.size > 1 else values

    def least(self, values: Tensor) -> Tensor:
        """Returns the smallest of every rank's ``values``, likewise."""
        return self._reduced(values, dist.ReduceOp.MIN) if self.size > 1 else values

    def worst(self, look: Callable[[], int], *, kinds: Iterable[type[Exception]] = ()) -> int:
        """Returns the largest of what ``look`` returns on any rank, on every rank.

        Args:
            look: returns a number from 0 to 99, or raises.
            kinds: of errors that are raised as what they are beside Python's own; others become a RuntimeError.

        Raises:
            Exception: ``look`` raised on some rank; then on all of them, with the same message.
        """
        if self.size == 1:
            return look()
        code, error = _FAILED, None
        try:
            code = look()
        except Exception as raised:
            error = raised
        worst = int(self._reduced(torch.tensor(code, dtype=torch.int32), dist.ReduceOp.MAX))
        if worst == _FAILED:
            self._raise(self._gather(_told(error)), error, kinds)
        return worst

    def together(self, do: Callable[[], None], *, undo: Callable[[], None]) -> None:
        """Does something on every rank, or on none.

        Args:
            do: changes nothing where it raises.
            undo: undoes it; called where ``do`` raised on any rank, on the others too.

        Raises:
            Exception: as :meth:`worst`.
        """

        def look() -> int:
            do()
            return 0

        try:
            self.worst(look)
        except BaseException:
            undo()
            raise

    def agree(self, look: Callable[[], Mapping[str, str]]) -> None:
        """Raises on every rank, with the same message, unless ``look`` returns the same on all of them.

        Args:
            look: returns what must be the same, by name; or raises.

        Raises:
            ValueError: the ranks differ.
            Exception: ``look`` raised on some rank.
        """
        if self.size == 1:
            look()
            return
        own: Mapping[str, str] = {}
        error = None
        try:
            own = look()
        except Exception as raised:
            error = raised
        found = self._gather((_told(error), dict(own)))
        errors = [failed for failed, _ in found]
        if any(errors):
            self._raise(errors, error)
        first = found[0][1]
        differences = [
            f"{name} is {first.get(name, 'not there')} on rank 0 and {other.get(name, 'not there')} on rank {rank}"
            for rank, (_, other) in enumerate(found)
            for name in sorted(
                {*first, *other}, key=lambda name: (name not in first or name not in other, name)
            )
            if first.get(name) != other.get(name)
        ]
        if differences:
            more = f"; and {len(differences) - 4} more differences" if len(differences) > 4 else ""
            raise ValueError(
                f"the {self.size} ranks do not train the same way: {'; '.join(differences[:4])}{more}. Give all of "
                f"them the same model, recipe and settings, or process_group=None where each trains its own model"
            )

    def _raise(
        self,
        errors: list[tuple[str, str] | None],
        own: Exception | None,
        kinds: Iterable[type[Exception]] = (),
    ) -> None:
        """Raises on every rank what some ranks raised."""
        ranks: dict[tuple[str, str], list[int]] = {}
        for rank, raised in enumerate(errors):
            if raised is not None:
                ranks.setdefault(raised, []).append(rank)
        known = _KINDS | {kind.__name__: kind for kind in kinds}
        kind = known.get(next(iter(ranks))[0], RuntimeError)
        texts = [
            text
            if len(where) == self.size
            else f"on rank{'s' * (len(where) > 1)} {', '.join(map(str, where[:8]))}: {text}"
            for (_, text), where in ranks.items()
        ]
        raise kind("; ".join(texts)) from own

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        with _explained():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def _reduced(self, values: Tensor, how: Any) -> Tensor:
        known = self._devices
        total = values.detach().clone()
        if total.device.type not in known:
            total = total.to("cpu" if "cpu" in known else known[0])
        with _explained():
            dist.all_reduce(total, how, group=self._group)
        return total


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, which names neither who called nor what for
        error.add_note(
            "This was nmstep's word with the other ranks. Either one of them has ended, or not all of them call "
            "the same: every rank calls nmstep.sparsify, optimizer.step() and, of a cut model, nmstep.verify."
        )
        raise


def _told(error: Exception | None) -> tuple[str, str] | None:
    """Returns what the other ranks are told of an error: its kind and its text."""
    if error is None:
        return None
    kind = type(error).__name__
    if isinstance(error, OSError) and kind not in _KINDS:
        kind = "OSError"
    return kind, str(error)
