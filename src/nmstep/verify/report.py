"""What verification found: a table for people, a dict for JSON, an error for scripts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from nmstep.patterns import NMPattern
from nmstep.verify.groups import GroupCount, Offender

__all__ = ["NotSparseError", "Status", "TensorReport", "VerifyReport"]

Status = Literal["ok", "violated", "missing", "shape", "dense"]


class NotSparseError(ValueError):
    """Something that was to be N:M is not; the text names the first offending group of each tensor."""


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """What was found about one tensor.

    Args:
        name: as the module, state dict or file names it (as the plan does, where it is missing).
        shape: as found, or as planned where it is missing.
        status: ``"ok"``; ``"violated"`` (some group keeps more than N, or the groups do not fit);
            ``"missing"`` or ``"shape"`` (planned, but absent or of another shape); ``"dense"`` (not checked).
        pattern: N kept of M that was asked for, or None where it may be dense.
        dim: the dimension that groups run along, or None.
        groups: groups looked at.
        complying: groups with at most N non-zero weights.
        first: the first group that does not comply.
        reason: why it was checked, why it failed, or why it may be dense.
    """

    name: str
    shape: tuple[int, ...]
    status: Status
    pattern: NMPattern | None = None
    dim: int | None = None
    groups: int = 0
    complying: int = 0
    first: Offender | None = None
    reason: str = ""

    @classmethod
    def counted(
        cls, name: str, shape: tuple[int, ...], pattern: NMPattern, dim: int, count: GroupCount, reason: str
    ) -> TensorReport:
        """Returns the report on a tensor whose groups were counted."""
        status: Status = "ok" if count.complying == count.groups else "violated"
        return cls(
            name=name,
            shape=shape,
            status=status,
            pattern=pattern,
            dim=dim,
            groups=count.groups,
            complying=count.complying,
            first=count.first,
            reason=reason,
        )

    @property
    def failed(self) -> bool:
        """Whether this tensor was to be N:M and is not."""
        return self.status not in ("ok", "dense")

    @property
    def share(self) -> float:
        """Share of groups that comply; 1 for a tensor without any weight, 0 where none could be looked at."""
        if self.groups:
            return self.complying / self.groups
        return 0.0 if self.failed else 1.0

    @property
    def failure(self) -> str:
        """One sentence on what is wrong, with the first offending group."""
        if self.first is None:
            return self.reason
        bad = f"{self.groups - self.complying:,} of {self.groups:,} groups"
        allowed = "" if self.pattern is None else f" hold more than {self.pattern.n} non-zeros"
        return f"{bad}{allowed}; first {self.first}" + (f"; {self.reason}" if self.reason else "")

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values; a NaN or infinite weight becomes its name."""
        first = None
        if self.first is not None:
            values = [v if math.isfinite(v) else str(v) for v in self.first.values]
            first = {"index": list(self.first.index), "values": values}
        return {
            "name": self.name,
            "shape": list(self.shape),
            "status": self.status,
            "pattern": None if self.pattern is None else str(self.pattern),
            "dim": self.dim,
            "groups": self.groups,
            "complying": self.complying,
            "share": None if self.status == "dense" else self.share,
            "first_offending_group": first,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What verification found in a module, state dict, file or folder; ``print`` shows it as a table.

    Args:
        target: what was verified, in words.
        tensors: one for each tensor that was checked, is missing, or may be dense.

    Example:
        >>> import torch
        >>> print(VerifyReport(target="a file", tensors=(
        ...     TensorReport(name="fc.weight", shape=(2, 4), status="ok", pattern=NMPattern(2, 4), dim=1,
        ...                  groups=2, complying=2, reason="default"),)))
        tensor     shape  pattern  dim  groups  comply  status  why
        fc.weight  2x4    2:4      1         2  100.0%  ok      default
        a file is N:M: 1 tensor complies
    """

    target: str
    tensors: tuple[TensorReport, ...]

    @property
    def checked(self) -> tuple[TensorReport, ...]:
        """The tensors that were to be N:M."""
        return tuple(tensor for tensor in self.tensors if tensor.status != "dense")

    @property
    def failed(self) -> tuple[TensorReport, ...]:
        """The tensors that were to be N:M and are not."""
        return tuple(tensor for tensor in self.tensors if tensor.failed)

    @property
    def ok(self) -> bool:
        """Whether every tensor that was to be N:M is, and there is at least one."""
        return bool(self.checked) and not self.failed

    def raise_if_failed(self) -> None:
        """Does nothing where all is well.

        Raises:
            NotSparseError: some tensor is not N:M; each is named with its first offending group.
        """
        if not self.ok:
            lines = [f"  {t.name!r} ({_asked(t)}): {t.failure}" for t in self.failed]
            raise NotSparseError("\n".join([f"{self._verdict()}:", *lines]))

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {
            "target": self.target,
            "ok": self.ok,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
        }

    def __str__(self) -> str:
        # Biases and norms would bury what matters; to_dict() has them.
        shown = [t for t in self.tensors if t.status != "dense" or len(t.shape) > 1]
        rows = [("tensor", "shape", "pattern", "dim", "groups", "comply", "status", "why"), *map(_row, shown)]
        widths = [max(len(row[i]) for row in rows) for i in range(7)]
        lines = []
        for row in rows:
            cells = [
                c.rjust(w) if i in (4, 5) else c.ljust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=False))
            ]
            lines.append("  ".join([*cells, row[7]]).rstrip())
        hidden = len(self.tensors) - len(shown)
        tail = f"; {hidden} with fewer than two dimensions not shown" if hidden else ""
        return "\n".join([*lines, self._verdict() + tail])

    def _verdict(self) -> str:
        total, bad = len(self.checked), len(self.failed)
        if bad:
            return f"{self.target} is not N:M: {bad} of {total} tensor{'s' * (total > 1)} failed"
        dense = sum(t.status == "dense" and len(t.shape) > 1 for t in self.tensors)
        left = f", {dense} left dense" if dense else ""
        return f"{self.target} is N:M: {total} tensor{'s comply' if total > 1 else ' complies'}{left}"


def _asked(tensor: TensorReport) -> str:
    along = "" if tensor.dim is None else f" along dimension {tensor.dim}"
    return f"{tensor.pattern}{along}"


def _row(tensor: TensorReport) -> tuple[str, ...]:
    dense = tensor.status == "dense"
    return (
        tensor.name,
        "x".join(map(str, tensor.shape)),
        "dense" if tensor.pattern is None else str(tensor.pattern),
        "" if tensor.dim is None else str(tensor.dim),
        "" if dense else f"{tensor.groups:,}",
        "" if dense else _percent(tensor),
        "" if dense else tensor.status,
        tensor.failure if tensor.failed else tensor.reason,
    )


def _percent(tensor: TensorReport) -> str:
    """The share, never rounded up to 100 % where a group fails."""
    return f"{math.floor(tensor.share * 1000) / 10:.1f}%"
