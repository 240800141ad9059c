"""Handing what a sparsifier records on to TensorBoard, a file, or any tracker of three methods."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nmstep.files import cannot_save, write_atomically
from nmstep.integrations.attached import check_sparsifier
from nmstep.packages import require
from nmstep.sparsify import Sparsifier
from nmstep.trace import TraceReader

__all__ = ["Feed", "JsonLines", "TensorBoard", "Tracker"]


@runtime_checkable
class Tracker(Protocol):
    """What a tracker must be able to do; wrap any other in a class of these three methods.

    One that has a method ``flush()`` too is told when what it was given should be on the disk.
    """

    def start(self, settings: Mapping[str, Any], *, step: int) -> None:
        """Is told of a run before its first values, and again after ``finish`` where an earlier state was loaded.

        Args:
            settings: what the run is, as JSON values.
            step: optimizer steps taken already; whatever was logged beyond it is of a run that was cut off.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes values by name, such as ``nm/z``; steps do not go back, but one may come twice."""

    def finish(self) -> None:
        """Writes what is left; no values follow."""


class Feed:
    """Hands what a sparsifier records on to trackers, from the moment it is made.

    Where an earlier state is loaded meanwhile, the trackers are ended and started again at its step.

    Names are ``nm/sparse`` (1 once masks have started), ``nm/lr``, ``nm/loss``, ``nm/z``, ``nm/z_mean``,
    ``nm/v_norm1`` and so on as in :meth:`nmstep.trace.Trace.rows`; ``nm/flip_rate`` (the mean of all layers) and
    ``nm/flip_rate/LAYER``, likewise ``density``, ``kept_norm`` and ``pruned_norm``; and, once, ``nm/switch_step``.

    Args:
        sparsifier: whose trace is read.
        trackers: each is started here; none on the ranks that are not to write.
        settings: told to them beside the recipe's own.

    Raises:
        TypeError: a tracker lacks one of the three methods, or ``sparsifier`` is something else.

    Example:
        >>> import torch, nmstep
        >>> class Printed:
        ...     def start(self, settings, *, step): print(settings["recipe"], "from step", step)
        ...     def log(self, step, values): print(step, sorted(values)[:3])
        ...     def finish(self): print("done")
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = nmstep.AdamW(model.parameters())
        >>> feed = Feed(nmstep.sparsify(model, optimizer, nmstep.SRSTE("2:4")), [Printed()])
        SR-STE from step 0
        >>> model(torch.ones(1, 8)).sum().backward(); optimizer.step(); feed.finish()
        1 ['nm/lr', 'nm/sparse', 'nm/switch_step']
        done
    """

    def __init__(
        self, sparsifier: Sparsifier, trackers: Iterable[Tracker], settings: Mapping[str, Any] | None = None
    ) -> None:
        check_sparsifier(sparsifier, needed_by="Feed")
        self._sparsifier = sparsifier
        self._trackers = tuple(trackers)
        for tracker in self._trackers:
            if not isinstance(tracker, Tracker):
                raise TypeError(
                    f"a tracker has the methods start, log and finish (see nmstep.integrations.trackers.Tracker), "
                    f"got {tracker!r}"
                )
        trace = sparsifier.trace
        trace.flush()
        self._reader = TraceReader(trace)
        self._head = {"recipe": sparsifier.recipe.name, "threshold": trace.threshold, **(settings or {})}
        self._start(sparsifier.step)

    def flush(self) -> dict[str, float]:
        """Hands on what was recorded since the last time, and returns the newest value of each name.

        Where an earlier state was loaded meanwhile, the trackers start once more, from its step.
        """
        rewound = self._reader.rewound()
        if rewound is not None:
            for tracker in self._trackers:
                tracker.finish()
            self._start(rewound)
        newest: dict[str, float] = {}
        for step, values in self._new():
            newest |= values
            for tracker in self._trackers:
                tracker.log(step, values)
        for tracker in self._trackers:
            if hasattr(tracker, "flush"):
                tracker.flush()
        return newest

    def log(self, values: Mapping[str, float]) -> None:
        """Hands on values of one's own of the step that was taken last, such as scores, after what was recorded."""
        self.flush()
        for tracker in self._trackers:
            tracker.log(self._sparsifier.step, values)

    def finish(self) -> None:
        """Hands on what is left, and ends the trackers; a second call does nothing."""
        self.flush()
        trackers, self._trackers = self._trackers, ()
        for tracker in trackers:
            tracker.finish()

    def _start(self, step: int) -> None:
        switched = self._sparsifier.switch_step
        # Of a resumed run the switch is in the log already, unless the masks start with it.
        self._told = switched is not None and switched <= step and step > 0
        for tracker in self._trackers:
            tracker.start(self._head, step=step)

    def _new(self) -> list[tuple[int, dict[str, float]]]:
        switched = self._sparsifier.switch_step
        rows, layers = self._reader.news()
        found: dict[int, dict[str, float]] = {}
        for row in rows:
            numbers = {k: v for k, v in row.items() if k not in ("step", "phase", "threshold")}
            values = found.setdefault(row["step"], {})
            values |= {f"nm/{k}": float(v) for k, v in numbers.items() if v is not None}
            values["nm/sparse"] = float(row["phase"] == "sparse")
        for step, values in _by_layer(layers).items():
            found.setdefault(step, {}).update(values)
        if switched is not None and not self._told:
            self._told = True
            found.setdefault(max(switched, min(found, default=switched)), {})["nm/switch_step"] = float(
                switched
            )
        return sorted(found.items())


def _by_layer(samples: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Returns the values of each layer and their means, by step."""
    found: dict[int, dict[str, float]] = {}
    gathered: dict[tuple[int, str], list[float]] = {}
    for sample in samples:
        numbers = {k: v for k, v in sample.items() if k not in ("step", "name") and v is not None}
        for key, value in numbers.items():
            found.setdefault(sample["step"], {})[f"nm/{key}/{sample['name']}"] = value
            gathered.setdefault((sample["step"], f"nm/{key}"), []).append(value)
    for (step, name), values in gathered.items():
        found[step][name] = sum(values) / len(values)
    return found


class TensorBoard:
    """Writes event files that TensorBoard shows.

    Args:
        folder: for the event files.
        every: optimizer steps between points; the switch, samples of the layers and values of one's own are written
            whenever they come.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: ``every`` is below 1.
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"TensorBoard(every={every!r}): expected an integer >= 1")
        require("tensorboard", "event files")
        self._folder, self._every = os.fspath(folder), every
        self._writer: Any = None

    def start(self, settings: Mapping[str, Any], *, step: int) -> None:
        """Opens a new event file, which hides what an earlier one has beyond ``step``; all of it, from step 0."""
        writer = require("torch.utils.tensorboard", "event files", extra="tensorboard").SummaryWriter
        self._writer = writer(self._folder, purge_step=step + 1 if step else 0)
        self._writer.add_text(
            "nm/settings", f"```\n{json.dumps(dict(settings), indent=1, default=str)}\n```", step
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a point for each name."""
        if step % self._every == 0:
            chosen = dict(values)
        else:
            own = {k: v for k, v in values.items() if not k.startswith("nm/")}
            chosen = own | {k: v for k, v in values.items() if k.count("/") > 1 or k in _RARE}
        for name, value in chosen.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Sees what was logged on the disk."""
        self._writer.flush()

    def finish(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


_RARE = ("nm/switch_step", "nm/flip_rate", "nm/density", "nm/kept_norm", "nm/pruned_norm")


class JsonLines:
    """Appends one JSON object a step to a file; what a run wrote that was cut off later is taken back.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def start(self, settings: Mapping[str, Any], *, step: int) -> None:
        """Keeps what the file has up to ``step``; a run from its first step on starts it anew."""
        del settings
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._kept(step) if step and self._path.is_file() else b""
        write_atomically(self._path, kept)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line.

        Raises:
            OSError: the disk is full, for one; the message names the file.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise cannot_save(error, self._path) from error

    def finish(self) -> None:
        """Does nothing: each line is written when it comes."""

    def _kept(self, step: int) -> bytes:
        lines = []
        for line in self._path.read_bytes().splitlines(keepends=True):
            try:
                is_kept = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):  # cut off in the middle of a write
                is_kept = False
            if not is_kept:
                break
            lines.append(line)
        return b"".join(lines)
