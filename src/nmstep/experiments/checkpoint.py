"""Checkpoints that survive ``kill -9``: written atomically, hashed, the last two kept."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from nmstep.files import read_json, write_atomically, write_json

__all__ = ["load_latest", "remove_older", "save"]

_LATEST = "latest.json"


def save(folder: Path, state: dict[str, Any], *, step: int) -> None:
    """Writes ``checkpoint-<step>.pt``, then points ``latest.json`` to it, then removes all but the last two.

    A process killed in between leaves ``latest.json`` pointing to a whole checkpoint. The file is serialised
    in memory first, so that its hash is that of what should have been written.

    Args:
        folder: the run folder.
        state: tensors, numbers and text in dicts and lists: what ``torch.load(weights_only=True)`` reads.
        step: optimizer steps taken.

    Raises:
        OSError: as :func:`~nmstep.files.write_atomically`; older checkpoints stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    name = f"checkpoint-{step}.pt"
    entry = {"file": name, "step": step, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / name, data)
    latest = folder / _LATEST
    previous = read_json(latest) if latest.exists() else None
    if previous is not None:
        previous = {key: previous[key] for key in entry}
    if previous is not None and previous["step"] == step:
        previous = None
    write_json(latest, {**entry, "previous": previous})
    remove_older(folder)


def remove_older(folder: Path) -> None:
    """Removes the checkpoints that ``latest.json`` does not name: killed before this, a save leaves one more."""
    record = read_json(folder / _LATEST)
    kept = {entry["file"] for entry in (record, record["previous"]) if entry is not None}
    for path in folder.glob("checkpoint-*.pt"):
        if path.name not in kept:
            path.unlink()


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Returns the newest checkpoint that is whole, or None where none was written yet.

    If the newest is damaged the one before it is returned, with a warning, and is the newest from then on: training
    goes on from there and repeats the steps in between, which gives the same weights.

    Raises:
        OSError: the newest is damaged, and nothing can be written.
        ValueError: no checkpoint is whole; the message says what is wrong with each.
    """
    latest = folder / _LATEST
    if not latest.exists():
        return None
    record = read_json(latest)
    try:
        entries = [record, *([record["previous"]] if record["previous"] else [])]
        problems: list[str] = []
        for entry in entries:
            path = folder / Path(entry["file"]).name  # beside it, whatever it says
            state, problem = _load(path, entry["sha256"])
            if state is not None:
                if problems:
                    warnings.warn(f"{'; '.join(problems)}; going on from {path.name} instead", stacklevel=2)
                    # Else the next save would keep the damaged one as the one before, and remove this.
                    write_json(latest, {**entry, "previous": None})
                return state
            problems.append(f"{str(path)!r} {problem}")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(latest)!r} is damaged: {error!r}; {_way_out(folder)}") from error
    raise ValueError(f"no checkpoint can be read: {'; '.join(problems)}; {_way_out(folder)}")


def _load(path: Path, sha256: str) -> tuple[dict[str, Any] | None, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    if hashlib.sha256(data).hexdigest() != sha256:
        return None, f"is corrupted or cut short ({len(data):,} bytes do not have the recorded hash)"
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        return None, f"is no checkpoint of tensors, numbers and text ({str(error).partition('.')[0]})"
    return state, ""


def _way_out(folder: Path) -> str:
    return f"restore the files from a copy, or delete {str(folder / _LATEST)!r} to train again from step 0"
