"""A look at the gradients before a step: is it one, and are they finite?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmstep.late import LATE_STEPS, Late, is_away
from nmstep.ranks import Ranks
from nmstep.shards import local

__all__ = ["GradientCheck", "OnNonfinite", "has_gradients", "is_at_rest", "is_idle"]

OnNonfinite = Literal["raise", "skip", "ignore"]


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any parameter has a gradient; without one, a step is none."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def is_idle(optimizer: Optimizer) -> bool:
    """Whether a step would be none: a learning rate of 0 on zero gradients.

    Checkpoint code takes such a step to make the optimizer create its state. The gradients are read
    only where the learning rate is 0.
    """
    return is_at_rest(optimizer) and not any(bool(g.any()) for _, g in _named_gradients(optimizer, {}))


def is_at_rest(optimizer: Optimizer) -> bool:
    """Whether every learning rate is 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return not any((isinstance(lr, Tensor) and is_away(lr)) or float(lr) != 0.0 for lr in rates)


class GradientCheck:
    """The look at the gradients that a sparsifier was asked for.

    Args:
        optimizer: whose gradients.
        on_nonfinite: what to do about a NaN or an infinity.
        names: returns a name for the id of a parameter, where one is known.
        ranks: who holds the gradients together.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        on_nonfinite: OnNonfinite,
        names: Callable[[], Mapping[int, str]],
        ranks: Ranks,
    ) -> None:
        self._optimizer = optimizer
        self._ranks = ranks
        self._on_nonfinite = on_nonfinite
        self._names = names
        self._late = Late()
        self._looked_at: dict[int, list[str]] = {}  # names, by the step whose flags are on their way

    def is_read_at_once(self) -> bool:
        """Whether :meth:`passes` says of this step's gradients what is true of them, rather than later."""
        return self.is_read_first() or (self._on_nonfinite == "raise" and not self._is_late())

    def is_read_first(self) -> bool:
        """Whether no step is taken before the host has read the gradients, wherever they lie."""
        return self._on_nonfinite == "skip"

    def _is_late(self) -> bool:
        named = _named_gradients(self._optimizer, {})
        return bool(named) and all(is_away(g) for _, g in named)

    def passes(self, step: int) -> bool:
        """Whether step number ``step`` may be taken.

        Gradients on a GPU that are only to raise an error are looked at without waiting, so that it comes
        :data:`nmstep.late.LATE_STEPS` steps later.

        Raises:
            FloatingPointError: a gradient holds a NaN or an infinity, and ``on_nonfinite`` is ``"raise"``.
        """
        if self._on_nonfinite == "ignore":
            return True
        named = _named_gradients(self._optimizer, self._names())
        gradients = [g for _, g in named]
        if self._on_nonfinite == "raise" and gradients and all(is_away(g) for g in gradients):
            self.tell(step, [name for name, _ in named], _finite(gradients))
            return True
        bad = _nonfinite(named)
        if bad and self._on_nonfinite == "raise":
            raise FloatingPointError(
                f"NaN or infinite gradient at optimizer step {step} in {_few(bad)}; nothing was changed. Lower the "
                f"learning rate, clip gradients, or leave such steps out with sparsify(..., on_nonfinite='skip')"
            )
        return not bad

    def captured(self) -> tuple[list[str], Tensor] | None:
        """Returns names of the gradients and whether each is finite, for :meth:`tell`, without a look at them."""
        named = [] if self._on_nonfinite == "ignore" else _named_gradients(self._optimizer, self._names())
        if not named:
            return None
        return [name for name, _ in named], _finite([g for _, g in named])

    def tell(self, step: int, names: list[str], finite: Tensor) -> None:
        """Sends to the host whether gradients were finite, and looks at what has arrived of earlier steps.

        Args:
            step: whose gradients.
            names: theirs.
            finite: a number for each, 1 or 0.

        Raises:
            FloatingPointError: one of an earlier step was not; of this one, where it lies on the CPU.
        """
        self._looked_at[step] = names
        self._late.put(step, self._ranks.least(finite))
        self._raise_late(self._late.due(step))

    def settle(self) -> None:
        """Looks at what was still on its way: before a checkpoint is written, and when no further step will come.

        Raises:
            FloatingPointError: as :meth:`passes`.
        """
        self._raise_late(self._late.drain())

    def forget(self) -> None:
        """Forgets what was on its way: another state was loaded."""
        self._late.drain()
        self._looked_at.clear()

    def _raise_late(self, arrived: list[tuple[int, Tensor]]) -> None:
        for step, finite in arrived:
            names = self._looked_at.pop(step)
            if not bool(finite.all()):
                bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
                raise FloatingPointError(
                    f"NaN or infinite gradient at optimizer step {step} in {_few(bad)}, seen now because the host "
                    f"reads from a GPU {LATE_STEPS} steps late: the weights and the optimizer's state hold it. Go "
                    f"on from a checkpoint with a lower learning rate or clipped gradients, or look before every "
                    f"step with sparsify(..., on_nonfinite='skip'), which makes the host wait"
                )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(map(repr, names[:5]))}{more}"


def _finite(gradients: list[Tensor]) -> Tensor:
    """Returns for each gradient 1 where all of it is finite, else 0, on their device."""
    # NaN, too, passes through this norm, which an empty part of a gradient does not have.
    norms = torch._foreach_norm([g if g.numel() else g.new_zeros(1) for g in gradients], float("inf"))
    return torch.stack([n.to(norms[0].device).float() for n in norms]).isfinite().to(torch.int8)


def _nonfinite(gradients: list[tuple[str, Tensor]]) -> list[str]:
    """Returns the names of the gradients that hold a NaN or an infinity."""
    if not gradients:
        return []
    # A sum passes NaN and infinity on, and is by far the cheapest look; it may overflow or cancel to NaN where
    # all is finite but huge, so only a second look at each entry accuses.
    sums = [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)).float() for _, g in gradients]
    if bool(torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all()):
        return []
    return [name for name, g in gradients if not bool(g.isfinite().all())]


def _named_gradients(optimizer: Optimizer, names: Mapping[int, str]) -> list[tuple[str, Tensor]]:
    found = []
    for g, group in enumerate(optimizer.param_groups):
        given = group.get("param_names", ())
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.grad.numel() and p.grad.layout == torch.strided:
                fallback = given[i] if i < len(given) else f"parameter {i} of group {g}"
                grad = torch.view_as_real(p.grad) if p.grad.is_complex() else p.grad
                found.append((names.get(id(p), fallback), local(grad)))
    return found
