"""AdamW with a frozen-variance phase and a floor inside the root."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._compile import (
    _disable_dynamo,
)  # torch.compiler.disable would import all of the compiler right here

from nmstep import late
from nmstep.optim.captures import check_capture
from nmstep.optim.floored import floored_step_, torch_step_
from nmstep.optim.fused import FROZEN, KernelStep
from nmstep.optim.moments import count_, moment_dtype, restore_, steps_taken, widen_, widened
from nmstep.optim.settings import MASK, PRUNED, as_ours_, check_attached, refuse, refuse_pairs
from nmstep.shards import aligned, is_sharded, local, touch

__all__ = ["FROZEN", "MASK", "PRUNED", "AdamW"]


class AdamW(torch.optim.Adam):
    """torch.optim.AdamW, to the bit, until masks start or its variance is frozen.

    The update is ``w ← w − lr · m̂ / (sqrt(v̂ + eps_root) + eps)`` with decoupled weight decay. After
    :meth:`freeze_variance_`, v̂ is the frozen ``v*``: neither updated nor bias-corrected again.

    Args:
        params: tensors, parameter groups, or (name, tensor) pairs.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment, outside it.
        weight_decay: coefficient of the (decoupled) decay.
        amsgrad: use the largest second moment so far; cannot be frozen.
        maximize: ascend instead of descend.
        foreach: torch's multi-tensor step while the variance is updated; None lets torch choose.
        capturable: count steps on the parameters' device, and take every step by the kernels, so that it can be
            captured in a CUDA graph; see :meth:`nmstep.Sparsifier.replayed`. ``lr`` may be a tensor there too.
        differentiable: not supported.
        fused: nmstep's kernels (see :func:`nmstep.kernels.status`). None uses them from the first step
            that torch does not have: with masks, a frozen variance, or a floor inside the root. True uses them
            before that too, as close to torch as its own kinds of step are to each other. False never does.
            A step that holds tensors which they do not take (float64, gaps, a subclass) is done in plain torch.
        decoupled_weight_decay: False gives Adam, whose decay enters the gradient.
        eps_root: added to the second moment, inside the root. optax's name for the paper's ε.
        state_dtype: ``torch.float32`` holds the moments of bfloat16 and float16 parameters in fp32, in memory and
            through ``load_state_dict``, and steps in fp32 (in plain torch). None: in each parameter's own dtype.

    Raises:
        ValueError: an argument is out of range, a flag is not supported, or a parameter is complex.
        RuntimeError: ``fused=True`` and there are no kernels.

    Source:
        AdamW: Loshchilov & Hutter 2019. Frozen phase: STEP, Alg. 1 lines 13 to 20.
    Deviation:
        STEP prints ``sqrt(v̂ + ε)`` (Eq. 7), a floor of 1e-4 under the denominator. torch's floor is
        ``eps`` = 1e-8 outside the root, and is the default here so that dense training equals torch's.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([w], lr=0.1, weight_decay=0.0)
        >>> w.grad = torch.ones(2)
        >>> optimizer.step()
        >>> w
        Parameter containing:
        tensor([0.9000, 0.9000], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = True,
        eps_root: float = 0.0,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        refuse({"differentiable": differentiable, "eps_root": eps_root}, of_a_group=False)
        if state_dtype not in (None, torch.float32):
            raise ValueError(
                f"state_dtype={state_dtype}: expected torch.float32, or None for each parameter's"
            )
        refuse_pairs(fused=fused, foreach=foreach, amsgrad=amsgrad, capturable=capturable)
        self._eps_root, self._state_dtype = eps_root, state_dtype
        #: What the kernels do of the coming step; for nmstep's own hooks.
        self.kernels = KernelStep(fused, capturable=capturable)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self.defaults |= {"eps_root": eps_root, "use_kernels": fused, "state_dtype": state_dtype}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, as in torch; ``eps_root`` defaults to the optimizer's own.

        Raises:
            ValueError: as of the class, or the group asks for what is of the whole optimizer.
        """
        refuse(param_group, of_a_group=True)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("eps_root", self._eps_root)
        group["capturable"] = self.defaults["capturable"]
        for key in ("use_kernels", "state_dtype"):  # of the whole optimizer; torch copies its defaults
            group.pop(key, None)
        for index, p in enumerate(group["params"]):
            if p.is_complex():
                del self.param_groups[-1]
                raise ValueError(
                    f"nmstep.AdamW does not support complex parameters: number {index} is {p.dtype}"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A state saved before the first step may hold a pruned part alone, which torch takes for Adam's.
        bare = {p: s for p, s in state["state"].items() if s and "step" not in s}
        state["state"].update({p: {} for p in bare})
        defaults = state.get("defaults") or self.defaults
        for group in state["param_groups"]:
            as_ours_(group, defaults)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.state.update(bare)
        self._eps_root = defaults.get("eps_root", 0.0)
        self._state_dtype = defaults.get("state_dtype")
        if not hasattr(self, "kernels"):  # a copy, of which torch keeps state and groups alone
            self.kernels = KernelStep(
                defaults.get("use_kernels"), capturable=defaults.get("capturable", False)
            )
        for group in self.param_groups:
            for p in group["params"]:
                if "step" in self.state.get(p, {}):  # where this one counts, not another AdamW
                    count_(self.state[p], p.device if group["capturable"] else torch.device("cpu"))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimizer's state, as in torch; with ``state_dtype``, moments keep theirs."""
        seen: dict[str, Any] = {}  # what every other hook has made of it
        handle = self.register_load_state_dict_pre_hook(lambda _, given: seen.update(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        restore_(self, seen, self._state_dtype)

    @torch.no_grad()
    def freeze_variance_(
        self,
        params: Iterable[Tensor] | None = None,
        *,
        correct_bias: bool = True,
        eps_root: float = 1e-8,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Freezes the second moment of ``params`` at its current value, for good.

        A parameter that never had a gradient has nothing to freeze and goes on as in Adam; one that
        is frozen already stays as it is.

        Args:
            params: whose variance; all of the optimizer's by default.
            correct_bias: freeze ``v̂ = v / (1 − β2^t)`` rather than v.
            eps_root: the floor inside the root from now on, in place of the group's.
            dtype: what to hold it in: each parameter's own dtype (None), or ``torch.bfloat16``.

        Raises:
            ValueError: a group uses amsgrad, or ``eps_root`` is negative.

        Source:
            STEP, Alg. 1 line 11.
        Deviation:
            Line 11 prints the uncorrected v (``correct_bias=False``), which raises the learning rate at
            the switch by ``1 / sqrt(1 − β2^t)``: 1.26 times at t = 1000, 7 times at t = 20.
        """
        if not eps_root >= 0.0:
            raise ValueError(f"Invalid eps_root value: {eps_root}")
        if any(group["amsgrad"] for group in self.param_groups):
            raise ValueError("amsgrad=True has no single variance to freeze; use amsgrad=False")
        chosen = None if params is None else {id(p) for p in params}
        for group in self.param_groups:
            beta2 = float(group["betas"][1])
            for p in group["params"]:
                state = self.state.get(p)
                if not state or FROZEN in state or (chosen is not None and id(p) not in chosen):
                    continue
                if correct_bias:
                    state["exp_avg_sq"].div_(1 - beta2 ** steps_taken(state, group))
                state[FROZEN] = eps_root
        self.hold_frozen_in_(dtype)

    @torch.no_grad()
    def hold_frozen_in_(self, dtype: torch.dtype | None) -> None:
        """Holds every frozen variance in ``dtype``; None changes nothing.

        torch casts what it loads to the parameter's dtype, so this is to be called after ``load_state_dict`` too.
        :func:`nmstep.sparsify` does so where its recipe has a ``preconditioner_dtype``.

        Raises:
            ValueError: ``dtype`` is neither None nor ``torch.bfloat16``.
        """
        if dtype not in (None, torch.bfloat16):
            raise ValueError(
                f"a frozen variance can be held in torch.bfloat16 or its own dtype, not in {dtype}"
            )
        for state in self.state.values():
            if dtype is not None and FROZEN in state:
                state["exp_avg_sq"] = state["exp_avg_sq"].to(dtype)

    @torch.no_grad()
    def unfreeze_variance_(self) -> None:
        """Ends the frozen phase: Adam goes on from ``v̂ = v*``, with its own floor."""
        for group in self.param_groups:
            beta2 = float(group["betas"][1])
            for p in group["params"]:
                state = self.state.get(p, {})
                if state.pop(FROZEN, None) is not None:
                    state["exp_avg_sq"] = state["exp_avg_sq"].to(moment_dtype(p, self._state_dtype))
                    state["exp_avg_sq"].mul_(1 - beta2 ** steps_taken(state, group))

    @_disable_dynamo  # a compiled loop calls it as it is: kernels and frozen variances are not to be traced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one optimization step and returns what ``closure`` returned, if one was given.

        Raises:
            RuntimeError: the state holds pruned parts and no sparsifier is attached, or a CUDA graph is captured
                that cannot hold this step.
        """
        if late.is_capturing():
            check_capture(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_attached(self.state.values())
        if self.kernels.takes(self):
            self.kernels.step(self)
            return loss
        for group in self.param_groups:
            for plain, batch in self._gather(group):
                # Adam looks at no two weights together: each rank steps what it holds of a DTensor.
                held = batch
                if any(is_sharded(p) for p in batch[0]):
                    held = [[local(aligned(t, p)) for t, p in zip(c, batch[0], strict=True)] for c in batch]
                with widened(held) as wide:
                    if plain:
                        torch_step_(group, wide)
                    else:
                        for p, row in zip(batch[0], zip(*wide, strict=True), strict=True):
                            floored_step_(group, self.state[p].get(FROZEN), *row)
                touch(*batch[0], *batch[2], *batch[3], *batch[4])
        return loss

    def has_own_step(self) -> bool:
        """Whether :meth:`step` is this class's, so that it does what its kernels accepted."""
        return inspect.unwrap(type(self).step) is inspect.unwrap(AdamW.step)

    def widens(self, p: Tensor) -> bool:
        """Whether the moments of ``p`` are held in another dtype than its own."""
        return moment_dtype(p, self._state_dtype) != p.dtype

    def _gather(self, group: dict[str, Any]) -> Iterable[tuple[bool, list[list[Tensor]]]]:
        """Returns the columns (p, grad, m, v, v_max, step) that torch can step, and those that it cannot."""
        columns: list[list[Tensor]] = [[], [], [], [], [], []]
        self._init_group(group, *columns)  # type: ignore[no-untyped-call]
        if widen_(((p, self.state[p]) for p in columns[0]), self._state_dtype):
            columns = [[], [], [], [], [], []]
            self._init_group(group, *columns)  # type: ignore[no-untyped-call]
        if not group["amsgrad"]:
            columns[4] = columns[3]
        plain = [FROZEN not in self.state[p] and group["eps_root"] == 0.0 for p in columns[0]]
        for kind in (True, False):
            if kind in plain:
                yield (
                    kind,
                    [[c for c, k in zip(column, plain, strict=True) if k is kind] for column in columns],
                )
