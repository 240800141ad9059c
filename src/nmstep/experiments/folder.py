"""A run's folder: whose it is, and that one process at a time works in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nmstep.experiments.config import RunConfig
from nmstep.files import read_json

__all__ = ["check_folder", "check_same", "only_one"]

# What may differ between a run and its resumption: it does not change what is computed.
_MAY_DIFFER = ("threads", "checkpoint_every")
_PATHS = ("data", "init", "plan_file")


def check_folder(config: RunConfig, folder: Path) -> None:
    """Raises ValueError if ``folder`` holds {what} of another configuration.

    Args:
        config: resolved.
        folder: may be missing.
    """
    path = folder / "config.json"
    if path.exists():
        check_same(config, read_json(path), folder, what="a run")


def check_same(config: RunConfig, saved: dict[str, Any], where: Path, *, what: str) -> None:
    """Raises ValueError if what is at ``where`` was computed with another configuration.

    Args:
        config: resolved.
        saved: the configuration there, as :meth:`RunConfig.to_dict` gave it.
        where: for the message.
        what: is there; for the message.
    """
    there = RunConfig.from_dict(saved, source=str(where)).to_dict()
    own = config.to_dict()
    differing = [
        f"{key} is {there.get(key)!r} there, {own.get(key)!r} here"
        for key in sorted({*there, *own} - set(_MAY_DIFFER))
        if _comparable(there.get(key), key in _PATHS) != _comparable(own.get(key), key in _PATHS)
        and not _moved(key, there.get(key), own.get(key))
    ]
    if differing:
        raise ValueError(
            f"{str(where)!r} holds {what} of another configuration: {'; '.join(differing)}. Resume it with "
            f"its own configuration, or choose another folder"
        )


def _comparable(value: Any, may_be_path: bool) -> Any:
    """Returns paths that exist in one spelling, and any other value as it is."""
    if isinstance(value, dict):  # options of a task, which may name text or a model
        return {name: _comparable(item, True) for name, item in value.items()}
    path = may_be_path and isinstance(value, str) and Path(value).exists()
    return str(Path(value).resolve()) if path else value


def _moved(key: str, there: Any, here: Any) -> bool:
    """Returns whether data that lay at ``there`` when the run began are now at ``here``, by the folder's name."""
    if key != "data" or not (isinstance(there, str) and isinstance(here, str)):
        return False
    return not Path(there).exists() and Path(here).exists() and Path(there).name == Path(here).name


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds a lock on the folder, which the system gives back even after ``kill -9``."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"another process is training in {str(folder)!r}: wait for it, or end it") from error
    finally:
        os.close(descriptor)
