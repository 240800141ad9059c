"""What the kernels are told of one parameter's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmstep.kernels.native import layout, same_order
from nmstep.patterns import NMPattern

__all__ = ["Cut", "Update", "moving"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What the step of a sparse parameter needs besides Adam's own state.

    Args:
        pruned: what the mask cut away, of the parameter's shape and dtype; takes what the new mask cuts away.
        pattern: N kept of M, from this step on.
        dim: the dimension that groups run along.
        refine: λ of SR-STE.
    """

    pruned: Tensor
    pattern: NMPattern
    dim: int
    refine: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Update:
    """One parameter's part in a step.

    Args:
        group: of the optimizer: lr, betas, eps, eps_root, weight_decay, maximize, decoupled_weight_decay.
        p: the parameter, of any shape; is stepped.
        grad: its gradient, of the same shape and dtype.
        exp_avg: first moment, likewise; is updated.
        exp_avg_sq: second moment, likewise; is updated unless it is frozen.
        step: this step's number, from 1; a tensor on the parameter's device where the optimizer is capturable.
        frozen_eps_root: the floor inside the root where ``exp_avg_sq`` holds the frozen v*, or None.
        cut: of a sparse parameter.
    """

    group: Mapping[str, Any]
    p: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: float | Tensor
    frozen_eps_root: float | None = None
    cut: Cut | None = None

    def lies(self) -> tuple[int, int, int, int, int]:
        """Returns the parameter's layout; one that has no groups is one row."""
        if self.cut is None:
            return (1, self.p.numel(), 1, 1, 1)
        return layout(self.p, self.cut.pattern, self.cut.dim)

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Returns the parameter, its pruned part, its gradient in the parameter's order, and both moments."""
        grad = self.grad if same_order(self.grad, self.p) else torch.empty_like(self.p).copy_(self.grad)
        return self.p, None if self.cut is None else self.cut.pruned, grad, self.exp_avg, self.exp_avg_sq

    def written(self) -> list[Tensor]:
        """Returns the tensors that the step writes to."""
        return [self.p, self.exp_avg, self.exp_avg_sq] + ([] if self.cut is None else [self.cut.pruned])

    @property
    def can_be_foreseen(self) -> bool:
        """Whether gradient and second moment alone say what the step does to the second moment, and it does."""
        return self.cut is None and self.frozen_eps_root is None and self.coupled == 0.0

    @property
    def refine(self) -> float:
        """λ of SR-STE; 0 for a dense parameter."""
        return 0.0 if self.cut is None else self.cut.refine

    @property
    def coupled(self) -> float:
        """Weight decay that enters the gradient."""
        return 0.0 if self.group["decoupled_weight_decay"] else float(self.group["weight_decay"])

    @property
    def key(self) -> tuple[object, ...]:
        """What :meth:`numbers` depends on, which many parameters share."""
        return (id(self.group), self.step, self.frozen_eps_root, self.refine)

    def numbers(self) -> dict[str, float]:
        """Returns the numbers of the step as the kernels take them, computed in float64."""
        beta1, beta2, decay = self.rates
        lr = float(self.group["lr"])
        return self.constants() | moving(lr, beta1, beta2, decay, float(self.step), root=math.sqrt)

    @property
    def rates(self) -> tuple[float, float, float]:
        """Both betas, and the weight decay that does not enter the gradient."""
        beta1, beta2 = (float(beta) for beta in self.group["betas"])
        return (
            beta1,
            beta2,
            float(self.group["weight_decay"]) if self.group["decoupled_weight_decay"] else 0.0,
        )

    def constants(self) -> dict[str, float]:
        """Returns those of the numbers that stay the same from step to step."""
        beta1, beta2, _ = self.rates
        frozen = self.frozen_eps_root
        return {
            "sign": -1.0 if self.group["maximize"] else 1.0,
            "refine": self.refine,
            "coupled": self.coupled,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "eps": self.group["eps"],
            "eps_root": self.group["eps_root"] if frozen is None else frozen,
        }


def moving(
    lr: Any, beta1: Any, beta2: Any, decay: Any, step: Any, *, root: Callable[[Any], Any]
) -> dict[str, Any]:
    """Returns those of a step's numbers that differ from step to step.

    Args:
        lr: learning rate; like the others a float, or a tensor with one for each parameter.
        beta1: decay rate of the first moment.
        beta2: of the second moment.
        decay: weight decay that does not enter the gradient.
        step: the step's number, from 1.
        root: returns a square root.
    """
    correction2 = 1 - beta2**step
    return {
        "decay": 1 - lr * decay,
        "step_size": lr / (1 - beta1**step),
        "correction2": correction2,
        "sqrt_correction2": root(correction2),
    }
