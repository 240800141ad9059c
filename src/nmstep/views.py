"""Other weights in the model for the time of a block, and the N:M model of averaged ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nmstep.kernels import split_
from nmstep.machine import StateMachine, target
from nmstep.optim.sparse_step import PRUNED, SparseStep
from nmstep.optim.splitting import put_back_, split_all_
from nmstep.shards import reshard
from nmstep.sparsity_plan import SparsityPlan

__all__ = ["Views"]


class Views:
    """What a :class:`nmstep.Sparsifier` can show in the model besides the weights that run."""

    plan: SparsityPlan
    _model: nn.Module
    _machine: StateMachine
    _sparse: SparseStep

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Masks the weights for the time of a block, to evaluate the dense phase as if it were sparse.

        Nothing happens once the masks have started: the model has the pattern in force then. Steps and
        ``optimizer.state_dict()`` are refused inside, where the model does not hold its own weights.

        Source:
            STEP, Fig. 4.
        """
        self._machine.check_shows_own("masked()")
        if self._machine.phase == "sparse" or not self.plan.sparse:
            yield
            return
        cut = split_all_(self._sparse, target)
        self._show("masked")
        try:
            yield
        finally:
            self._show(None)
            put_back_(cut)

    @contextmanager
    def latent(self) -> Iterator[None]:
        """Puts the weights as they were before the mask into the model for the time of a block, to average them.

        In the dense phase, and where a mask was chosen once, the model holds them anyway. Steps, saving and
        ``finalize`` are refused inside. Not for between a forward and its backward pass: weights are written to.

        Raises:
            RuntimeError: entered inside itself or :meth:`masked`, or the optimizer's state is gone.
            ValueError: a parameter was written to since the last step.

        Example:
            >>> from nmstep import SRSTE, AdamW, sparsify
            >>> model = nn.Linear(4, 1)
            >>> sparsifier = sparsify(model, AdamW(model.parameters()), SRSTE("1:4"))
            >>> with sparsifier.latent():
            ...     print(int(model.weight.count_nonzero()))
            4
            >>> int(model.weight.count_nonzero())
            1
        """
        self._machine.check_shows_own("latent()")
        self._machine.recover()
        if self._machine.phase == "sparse":
            self._sparse.check()
        states = [(p, self._sparse.optimizer.state.get(p, {})) for _, p in self._sparse]
        cut = [(p, state[PRUNED]) for p, state in states if PRUNED in state]
        try:
            put_back_(cut)
            self._show("latent")
            yield
        finally:
            self._show(None)
            with torch.no_grad():
                for p, pruned in cut:
                    p.masked_fill_(pruned != 0, 0)
            if cut:
                self._sparse.remember()

    def averaged(self, model: nn.Module) -> nn.Module:
        """Returns a copy of an averaged model, masked by the plan's patterns: the largest of each averaged group.

        Average the weights before the mask, inside :meth:`latent`: otherwise a weight counts as zero in each step
        whose mask cut it. Statistics of normalisation layers stay those of ``model``: take them anew afterwards
        with ``torch.optim.swa_utils.update_bn``.

        Args:
            model: a ``torch.optim.swa_utils.AveragedModel``, or any module with the model's parameters.

        Raises:
            ValueError: ``model`` lacks a planned parameter.

        Example:
            >>> from nmstep import STE, AdamW, sparsify, verify
            >>> model = nn.Linear(8, 4)
            >>> sparsifier = sparsify(model, AdamW(model.parameters()), STE("2:4"))
            >>> ema = AveragedModel(model)
            >>> with sparsifier.latent():
            ...     ema.update_parameters(model)
            >>> verify(ema.module, "2:4").ok, verify(sparsifier.averaged(ema), "2:4").ok
            (False, True)
        """
        found = copy.deepcopy(model.module if isinstance(model, AveragedModel) else model)
        parameters = self.plan.resolve(found)
        with torch.no_grad():
            for entry in self.plan.sparse:
                split_(parameters[entry.name], target(entry), dim=entry.dim or 0, pad=entry.pad)
        return found

    def _show(self, what: str | None) -> None:
        self._machine.shows = what
        self._forget_copies()

    def _forget_copies(self) -> None:
        """Drops the copies of weights that others made before nmstep wrote to them."""
        torch.clear_autocast_cache()
        reshard(self._model)
