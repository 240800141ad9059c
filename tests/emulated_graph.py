"""A CUDA graph that the CPU plays: it records what a function does, undoes it, and does it again at each replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from nmstep import late
from nmstep.kernels.gpu import programs

# What makes a host wait for a device: an error while a graph is captured.
_WAITS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::unique"}


class Emulator:
    """Captures graphs. While it does, the library is told that a CUDA graph is being captured.

    Args:
        monkeypatch: of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recording: Graph | None = None
        monkeypatch.setattr(late, "is_capturing", lambda: self.recording is not None)
        for name in ("adam_step", "mask", "split"):
            monkeypatch.setattr(programs, name, _Program(self, getattr(programs, name)))

    def capture(self, function: Callable[[], object], written: Iterable[Tensor]) -> Graph:
        """Returns the graph of what ``function`` does.

        Args:
            function: runs once; as nothing runs while a graph is captured, what it wrote is undone afterwards.
            written: the tensors from outside that it writes to. What it made itself is spoilt until a replay.
        """
        before = [(t, t.detach().clone()) for t in written]
        self.recording = graph = Graph()
        try:
            with graph:
                function()
        finally:
            self.recording = None
            for tensor, value in before:
                tensor.data.copy_(value)  # which counts no write
        graph.spoil()
        return graph


class Graph(TorchDispatchMode):
    """What was done: operations of torch, and launches of Triton's programs."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self._done: list[Callable[[], None]] = []
        self._own: dict[int, Tensor] = {}  # made in the capture, by address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in _WAITS:
            raise AssertionError(f"{func} makes the host wait in a capture")
        found = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        given = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        fresh = [t for t in outputs if _address(t) not in given]
        self._own.update((_address(t), t) for t in fresh)

        def again() -> None:
            repeated = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for old, new in zip(outputs, repeated, strict=True):
                if any(old is t for t in fresh):
                    old.data.copy_(new)

        self._done.append(again)
        return found

    def launch(self, run: Callable[[], None]) -> None:
        """Adds the launch of a program, and runs it."""
        self.launches += 1
        self._done.append(run)
        with _disable_current_modes():
            run()

    def spoil(self) -> None:
        """Overwrites what was made while nothing really ran."""
        for tensor in self._own.values():
            tensor.data.fill_(torch.nan if tensor.is_floating_point() else 0)

    def replay(self) -> None:
        """Does all of it again, with what lies in the same memory now."""
        with torch.no_grad():
            for again in self._done:
                again()


class NoWaits(TorchDispatchMode):
    """Inside, a host may read what :class:`nmstep.late.Late` brought to it or it made of numbers, and nothing else.

    Args:
        monkeypatch: of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.reads = 0
        self._here: dict[int, Tensor] = {}  # on the host, by address
        put, tolist = late.Late.put, Tensor.tolist

        def sent(queue: late.Late, step: int, values: Tensor) -> None:
            with _disable_current_modes():
                copy = values.detach().clone()
            self._here[_address(copy)] = copy
            put(queue, step, copy)

        def read(tensor: Tensor) -> Any:
            self._check([tensor], "tolist")
            return tolist(tensor)

        monkeypatch.setattr(late.Late, "put", sent)
        monkeypatch.setattr(Tensor, "tolist", read)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        if func._schema.name in _WAITS:
            self._check(given, func)
        found = func(*args, **(kwargs or {}))
        if all(_address(t) in self._here for t in given):
            self._here.update((_address(t), t) for t in tree_leaves(found) if isinstance(t, Tensor))
        return found

    def __enter__(self) -> NoWaits:
        self._inside = True
        super().__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._inside = False
        super().__exit__(*raised)

    _inside = False

    def _check(self, tensors: list[Tensor], what: object) -> None:
        self.reads += self._inside
        if self._inside and any(_address(t) not in self._here for t in tensors):
            raise AssertionError(f"{what} makes the host wait for the device")


class _Program:
    def __init__(self, emulator: Emulator, program: Any) -> None:
        self._emulator, self._program = emulator, program

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launched(*args: Any, **kwargs: Any) -> None:
            def run() -> None:
                self._program[grid](*args, **kwargs)

            graph = self._emulator.recording
            run() if graph is None else graph.launch(run)

        return launched


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)
