"""Disks that are full, and folders that cannot be written to: a clear error, and nothing lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from soak.board import Board
from soak.children import Child, Outcome, train
from soak.rows import Row, attempt, timed
from soak.runs import STEPS, Whole, resumed

__all__ = ["failing_calls", "file_limits", "read_only", "small_disks"]

_PLENTY = "64m"
_NOBODY = 65534


@contextlib.contextmanager
def _mounted(place: Path, size: str) -> Iterator[None]:
    """Puts a file system of this size, in memory, at a new folder.

    Raises:
        OSError: this process may not mount, or the system has no such file system.
    """
    place.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "soak", str(place))
        try:
            yield
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        place.rmdir()


def _mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise PermissionError(
            errno.EPERM, f"cannot mount: {error.stderr.decode().partition(chr(10))[0]}"
        ) from error


def _why_no_mounts(folder: Path) -> str:
    """Returns why this process may not mount, or nothing."""
    try:
        with _mounted(folder / "probe", "64k"):
            return ""
    except OSError as error:
        return str(error)


def _remount(place: Path, option: str) -> None:
    _mount("-o", f"remount,{option}", str(place))


def _refused(outcome: Outcome, *numbers: int) -> list[str]:
    """Returns what is wrong with how a run told that it cannot write; nothing, if it told it well."""
    if outcome.error is None:
        return ["ended as if nothing were wrong"]
    kind, message = outcome.error
    told = any(os.strerror(number) in message for number in numbers) and "intact" in message
    is_os_error = kind in ("OSError", "PermissionError")
    return [] if told and is_os_error else [f"told badly: {kind}: {message}"]


def small_disks(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Trains on disks too small for the run, makes room, and resumes; needs the right to mount."""
    row = Row("full disk (a small file system), then room")
    row.skipped = _why_no_mounts(folder)
    if row.skipped:
        return row
    whole, place = wholes[0], folder / "disk"
    needed = sum(path.stat().st_size for path in whole.folder.iterdir()) // 1024
    with timed(row):
        for i in range(count):
            size = f"{round(needed * (i + chance.random()) / count) + 4}k"

            def check(size: str = size) -> list[str]:
                with _mounted(place, size):
                    child = train(whole.config, place)
                    wrong = _refused(child.outcome(), errno.ENOSPC)
                    _remount(place, f"size={_PLENTY}")
                    return wrong + resumed(whole, place, child.board)

            attempt(row, f"{size} of {needed}k", check)
    return row


def file_limits(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Trains with a limit on the size of files, which a disk that fills up in mid-write looks like."""
    row = Row("no file may grow beyond a limit, then it may")
    with timed(row):
        for i in range(count):
            whole, place = wholes[i % len(wholes)], folder / f"limited-{i}"
            most = max(path.stat().st_size for path in whole.folder.iterdir())
            limit = round(most ** chance.uniform(0.3, 0.999))

            def check(whole: Whole = whole, place: Path = place, limit: int = limit) -> list[str]:
                child = train(whole.config, place, before=_limit(limit))
                wrong = _refused(child.outcome(), errno.EFBIG)
                return _cleared(wrong + resumed(whole, place, child.board), place)

            attempt(row, f"{limit:,} bytes", check)
    return row


def _limit(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def failing_calls(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Makes one call of the system fail for want of room: opening, writing, syncing or renaming."""
    row = Row("one call fails with ENOSPC, then none")
    with timed(row):
        for i in range(count):
            whole, place = wholes[i % len(wholes)], folder / f"failing-{i}"
            name, number = chance.choice(_CALLS), chance.randrange(1, 12)

            def check(
                whole: Whole = whole, place: Path = place, name: str = name, number: int = number
            ) -> list[str]:
                child = train(whole.config, place, before=lambda: _fail(name, number))
                wrong = _refused(child.outcome(), errno.ENOSPC)
                return _cleared(wrong + resumed(whole, place, child.board), place)

            attempt(row, f"{name} number {number}", check)
    return row


_CALLS = ("touch", "write_bytes", "replace", "fsync")


def _fail(name: str, number: int) -> None:
    """Makes the ``number``-th call fail, in this process and from now on all that follow it."""
    owner: Any = os if name == "fsync" else Path
    call, calls = getattr(owner, name), [0]

    def failing(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments, **named)

    setattr(owner, name, failing)


def read_only(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Trains in a folder that nothing may be written to: a new one, one with half a run, one with a whole run."""
    row = Row("read-only folder, then writable")
    with timed(row):
        for i in range(count):
            whole, place = wholes[i % len(wholes)], folder / f"locked-{i}"
            step = -1 if i % 3 == 0 else chance.randrange(8, STEPS)

            def by_mode(whole: Whole = whole, place: Path = place, step: int = step) -> list[str]:
                return _locked(whole, place, step, lambda: place.chmod(0o555), lambda: place.chmod(0o777))

            attempt(row, f"by its mode, from step {step}", by_mode)

            mounted = folder / f"mounted-{i}"

            def by_mount(whole: Whole = whole, place: Path = mounted, step: int = step) -> list[str]:
                with _mounted(place, _PLENTY):
                    return _locked(
                        whole, place, step, lambda: _remount(place, "ro"), lambda: _remount(place, "rw")
                    )

            if not _why_no_mounts(folder):
                attempt(row, f"by a read-only mount, from step {step}", by_mount)
    return row


def _locked(
    whole: Whole, place: Path, step: int, lock: Callable[[], None], unlock: Callable[[], None]
) -> list[str]:
    """Runs to a step, locks, tries, unlocks, and resumes; then locks the finished run and asks for its result."""
    place.mkdir(exist_ok=True)
    child: Child | None = None
    if step >= 0:
        child = train(whole.config, place)
        child.wait_until(lambda board: board.step >= step)
        child.kill()
        child.outcome()
    before = _contents(place)
    lock()
    wrong = _refused(
        train(whole.config, place, before=_be_nobody).outcome(), errno.EACCES, errno.EROFS, errno.EPERM
    )
    wrong += [] if _contents(place) == before else ["something was changed all the same"]
    unlock()
    wrong += resumed(whole, place, Board() if child is None else child.board)
    lock()
    again = train(whole.config, place, before=_be_nobody).outcome()
    wrong += [] if again.error is None else [f"a finished run could not be read: {again.error[1]}"]
    unlock()
    return _cleared(wrong, place)


def _be_nobody() -> None:
    """Gives up the rights of root, to whom the mode of a folder says nothing."""
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # a root that has none of these rights
            os.setuid(_NOBODY)


def _contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def _cleared(wrong: list[str], place: Path) -> list[str]:
    if not wrong and not os.path.ismount(place):
        shutil.rmtree(place)
    return wrong
