"""Adam's step in plain torch: torch's own, and one for a floor inside the root or a frozen variance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

__all__ = ["floored_step_", "torch_step_"]


def torch_step_(group: dict[str, Any], batch: list[list[Tensor]]) -> None:
    """Steps a batch as torch does.

    Args:
        group: of the optimizer.
        batch: the columns p, grad, exp_avg, exp_avg_sq, max_exp_avg_sq and step.
    """
    beta1, beta2 = group["betas"]
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = batch
    adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs if group["amsgrad"] else [],
        steps,
        foreach=group["foreach"],
        decoupled_weight_decay=group["decoupled_weight_decay"],
        amsgrad=group["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def floored_step_(
    group: dict[str, Any],
    frozen: float | None,
    p: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor,
    step: Tensor,
) -> None:
    """Steps one parameter.

    Args:
        group: of the optimizer: lr, betas, eps, eps_root, weight_decay, decoupled_weight_decay, maximize, amsgrad.
        frozen: the floor inside the root where ``exp_avg_sq`` holds the frozen v*, or None.
        p: the parameter; is stepped, as all that follow but the gradient are.
        grad: its gradient.
        exp_avg: first moment.
        exp_avg_sq: second moment; only read where it is frozen.
        max_exp_avg_sq: the largest second moment so far, with amsgrad.
        step: steps taken before this one.
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    lr = float(group["lr"])  # of a tensor, too, whatever its shape
    step += 1
    t = float(step)
    grad = -grad if group["maximize"] else grad
    if group["weight_decay"] != 0:
        if group["decoupled_weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        else:
            grad = grad.add(p, alpha=group["weight_decay"])
    exp_avg.lerp_(grad, 1 - beta1)
    if frozen is not None:
        # In fp32 at least: fp16 cannot hold the floor before its root is taken.
        wide = exp_avg_sq.to(torch.promote_types(exp_avg_sq.dtype, torch.float32), copy=True)
        denominator = wide.add_(frozen).sqrt_().add_(group["eps"]).to(p.dtype)
    else:
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
        denominator = (max_exp_avg_sq / (1 - beta2**t)).add_(group["eps_root"]).sqrt_().add_(group["eps"])
    p.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**t))
