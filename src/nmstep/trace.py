"""What a run records of itself: one row a step, one row a layer now and then.

Values stay on their device as tensors and are read in blocks, so that recording does not make the host
wait for an accelerator at every step.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from nmstep.late import is_away
from nmstep.switching import VarianceStats

__all__ = ["UNSEEN", "Trace", "TraceOptions", "TraceReader", "stats_of", "switch_values", "variance_row"]

_SWITCH_READS = ("z", "v_norm1", "v_norm2", "z_geometric")
#: What :func:`switch_values` holds of a step whose variance was not looked at.
UNSEEN = (math.nan,) * len(_SWITCH_READS)
_COLUMNS = ("step", "sparse", "lr", "loss", "v_norm1", "v_norm2", "z", "z_geometric", "z_unchanged", "z_mean")


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """How often the costly parts are recorded.

    Args:
        variance_every: optimizer steps between samples of the variance where the switch does not read
            every one of them anyway; 0 for never.
        layers_every: optimizer steps between samples of each layer's masks; 0 for never.
        geometric: record the geometric mean of the variance's change too, which costs a logarithm for
            each weight.
        block: steps kept on the device before they are read.

    Raises:
        ValueError: a number is negative, or ``block`` is 0.
    """

    variance_every: int = 10
    layers_every: int = 100
    geometric: bool = False
    block: int = 256

    def __post_init__(self) -> None:
        for name, least in (("variance_every", 0), ("layers_every", 0), ("block", 1)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(
                    f"TraceOptions({name}={getattr(self, name)!r}): expected an integer >= {least}"
                )


class Trace:
    """The recorded statistics of one run.

    Args:
        d: coordinates that the variance statistics cover.
        threshold: what the switch compares ``z_mean`` with, or None.
        block: rows kept unread before they are flushed.
    """

    def __init__(self, *, d: int, threshold: float | None, block: int) -> None:
        self.d = d
        self.threshold = threshold
        self.layers: list[dict[str, Any]] = []
        self._readers: WeakSet[TraceReader] = WeakSet()
        self._block = block
        self._columns = {name: array("d") for name in _COLUMNS}
        self._pending: list[dict[str, float | Tensor]] = []
        self._pending_layers: list[tuple[int, list[str], Tensor]] = []

    def __len__(self) -> int:
        return len(self._columns["step"]) + len(self._pending)

    def append(self, row: dict[str, float | Tensor]) -> None:
        """Adds one step; values are floats or one-element tensors, missing ones become NaN."""
        self._pending.append({name: _off_the_host_heap(value) for name, value in row.items()})
        if len(self._pending) >= self._block:
            self.flush()

    def append_layers(self, step: int, names: list[str], values: Tensor) -> None:
        """Adds one sample of every layer: flip rate, density, norms of the kept and the pruned part.

        Args:
            step: optimizer steps taken.
            names: L layer names.
            values: shape (L, 4), on the device.
        """
        self._pending_layers.append((step, names, values))

    def flush(self) -> None:
        """Reads what is still on the device."""
        read = {name: _read([row.get(name, math.nan) for row in self._pending]) for name in self._columns}
        self._pending.clear()
        for name, numbers in read.items():
            self._columns[name].extend(numbers)
        for step, names, values in self._pending_layers:
            for name, (flips, density, kept, pruned) in zip(names, values.tolist(), strict=True):
                self.layers.append(
                    {
                        "step": step,
                        "name": name,
                        "flip_rate": None if math.isnan(flips) else flips,
                        "density": density,
                        "kept_norm": kept,
                        "pruned_norm": pruned,
                    }
                )
        self._pending_layers.clear()

    def rewind(self, step: int) -> None:
        """Forgets what was recorded after ``step``: an earlier state was loaded, and the run goes on from there."""
        self.flush()
        kept = bisect_right(self._columns["step"], step)
        for column in self._columns.values():
            del column[kept:]
        del self.layers[bisect_right(self.layers, step, key=lambda layer: int(layer["step"])) :]
        for reader in self._readers:
            reader.follow(self, step)

    def tell(self, reader: TraceReader) -> None:
        """Tells a reader from now on when the trace is rewound."""
        self._readers.add(reader)

    def rows(self, start: int = 0) -> list[dict[str, Any]]:
        """Returns the recorded steps from the ``start``-th row on, missing values as None.

        Keys: ``step`` (optimizer steps taken), ``phase``, ``lr``, ``loss``, ``v_norm1``, ``v_norm2``,
        ``z`` (Z_t), ``z_geometric`` and ``z_unchanged`` (the coordinates that mean leaves out), ``z_mean``
        (what the switch compared), ``threshold``. Of a frozen variance nothing is recorded.
        """
        self.flush()
        rows = []
        for values in zip(*(column[start:] for column in self._columns.values()), strict=True):
            row: dict[str, Any] = {
                k: None if math.isnan(v) else v for k, v in zip(_COLUMNS, values, strict=True)
            }
            row["step"] = int(row["step"])
            row["phase"] = "sparse" if row.pop("sparse") else "dense"
            row["threshold"] = self.threshold
            rows.append(row)
        return rows

    def variance(self) -> list[VarianceStats]:
        """Returns the recorded variance statistics, for :func:`nmstep.switching.replay`."""
        return [
            VarianceStats(
                step=row["step"],
                change=row["z"],
                norm1=row["v_norm1"],
                norm2=row["v_norm2"],
                change_geometric=row["z_geometric"],
            )
            for row in self.rows()
            if row["z"] is not None
        ]


class TraceReader:
    """Reads on in a trace from where it was read to, or rewound to.

    Args:
        trace: of which nothing is read that is there already.
    """

    def __init__(self, trace: Trace) -> None:
        trace.flush()
        self._trace, self._rows, self._layers = trace, len(trace), len(trace.layers)
        self._rewound: int | None = None
        trace.tell(self)

    def news(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Returns the rows of steps and of layers that were recorded since the last time."""
        rows = self._trace.rows(self._rows)
        layers = self._trace.layers[self._layers :]
        self._rows, self._layers = self._rows + len(rows), self._layers + len(layers)
        return rows, layers

    def rewound(self) -> int | None:
        """Returns the earliest step that the trace was rewound to since the last time, or None."""
        found, self._rewound = self._rewound, None
        return found

    def follow(self, trace: Trace, step: int) -> None:
        """Is told that the trace was rewound to ``step``."""
        if len(trace) < self._rows or len(trace.layers) < self._layers:
            self._rewound = step if self._rewound is None else min(step, self._rewound)
        self._rows, self._layers = min(self._rows, len(trace)), min(self._layers, len(trace.layers))


def variance_row(sums: Tensor, d: int, geometric: bool) -> dict[str, float | Tensor]:
    """Returns the trace's columns from [Σ|Δv|, Σ log|Δv|, changed, ‖v‖₁, ‖v‖₂²], all still on the device.

    Of a CPU's sums they are numbers: after a step over large weights every call of torch is slow, since its code
    has left the caches.
    """
    if sums.device.type == "cpu" and not is_away(sums) and not geometric:
        change, _, _, norm1, square = sums.tolist()
        # As torch divides by zero.
        return {"z": change / d if d else math.nan, "v_norm1": norm1, "v_norm2": math.sqrt(square)}
    row: dict[str, float | Tensor] = {"z": sums[0] / d, "v_norm1": sums[3], "v_norm2": sums[4].sqrt()}
    if geometric:
        row["z_geometric"] = torch.where(sums[2] > 0, (sums[1] / sums[2]).exp(), 0.0)
        row["z_unchanged"] = d - sums[2]
    return row


def switch_values(row: dict[str, float | Tensor]) -> Tensor:
    """Returns what a switch observes of a step, from its row: shape (4,), NaN where missing, where the row lies."""
    values = [row.get(name, math.nan) for name in _SWITCH_READS]
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    if device is None:
        return torch.tensor(values, dtype=torch.float64)
    # Filled there rather than sent there, which would make the host wait.
    tensors = [v if isinstance(v, Tensor) else torch.full((), v, device=device) for v in values]
    return torch.stack([t.to(torch.float64) for t in tensors])


def stats_of(step: int, values: Sequence[float]) -> VarianceStats:
    """Returns the same as the switch takes it, from what :func:`switch_values` held."""
    change, norm1, norm2, geometric = values
    return VarianceStats(
        step=step,
        change=change,
        norm1=norm1,
        norm2=norm2,
        change_geometric=None if math.isnan(geometric) else geometric,
    )


def _off_the_host_heap(value: float | Tensor) -> float | Tensor:
    """Returns a number for a tensor on the CPU, where reading costs nothing.

    Kept as tensors until the block is full, they would lie between the large tensors of each step, and the
    C library could not use that space again: the process would grow by as much every step.
    """
    return float(value) if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _read(values: list[float | Tensor]) -> list[float]:
    """Returns the values as floats, with one transfer for all tensors among them."""
    tensors = [value.detach().reshape(()).double() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(read) if isinstance(value, Tensor) else float(value) for value in values]
