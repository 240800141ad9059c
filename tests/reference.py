"""An independent twin of every recipe, written from the papers: slow, plain, and sharing no code with nmstep.

Latent weights live apart from the model, gradients are taken by ``torch.func.functional_call`` on masked
copies, and masks come from counting, not sorting. Line numbers are those of STEP's Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def mask_by_counting(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """Keeps a weight if fewer than n of its group beat it: larger, or equal with a lower index."""
    groups = weight.movedim(dim, -1).unflatten(-1, (-1, m)).abs()
    ahead = torch.zeros_like(groups)
    for j in range(m):
        for i in range(m):
            wins = groups[..., j] > groups[..., i] if j >= i else groups[..., j] >= groups[..., i]
            ahead[..., i] += wins * (i != j)
    return (ahead < n).flatten(-2).movedim(-1, dim)


@dataclass
class Method:
    """One recipe in the papers' terms."""

    start: int | None = 0  # optimizer steps before the masks start; None: never
    once: bool = False  # ASP
    refine: float = 0.0  # SR-STE's lambda
    freeze: bool = False  # STEP
    correct_bias: bool = True
    eps_root: float = 1e-8
    kept_after: Callable[[int, int, int], int] = field(default=lambda n, _m, _steps: n)


class Twin:
    """Adam(W) with N:M masks on a model's functional form."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, dict[str, Tensor], Tensor], Tensor],
        patterns: dict[str, tuple[int, int, int]],
        method: Method,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
        decoupled: bool = True,
    ) -> None:
        self.model, self.loss, self.patterns, self.method = model, loss, patterns, method
        self.lr, self.betas, self.eps, self.decay, self.decoupled = lr, betas, eps, decay, decoupled
        self.w = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.m = {name: torch.zeros_like(p) for name, p in self.w.items()}
        self.v = {name: torch.zeros_like(p) for name, p in self.w.items()}
        self.v_star: dict[str, Tensor] | None = None
        self.masks: dict[str, Tensor] = {}
        self.t = 0
        self._choose_masks()

    def _choose_masks(self) -> None:
        if self.method.start is None or self.t < self.method.start:
            return
        if self.method.once and self.masks:
            return
        for name, (n, m, dim) in self.patterns.items():
            kept = self.method.kept_after(n, m, self.t - self.method.start)
            self.masks[name] = mask_by_counting(self.w[name], kept, m, dim)
            if self.method.once:
                self.w[name] = self.w[name] * self.masks[name]

    def masked(self) -> dict[str, Tensor]:
        return {name: w * self.masks[name] if name in self.masks else w for name, w in self.w.items()}

    def step(self, batch: Tensor) -> None:
        point = {name: w.clone().requires_grad_() for name, w in self.masked().items()}
        gradients = torch.autograd.grad(self.loss(self.model, point, batch), list(point.values()))
        self.t += 1
        beta1, beta2 = self.betas
        for name, g in zip(point, gradients, strict=True):
            w, mask = self.w[name], self.masks.get(name)
            if mask is not None and self.method.once:
                g = g * mask
            if mask is not None and self.method.refine:
                g = g + self.method.refine * (1 - mask.to(w.dtype)) * w
            if self.decoupled:
                w = w - self.lr * self.decay * w
            else:
                g = g + self.decay * w
            self.m[name] = beta1 * self.m[name] + (1 - beta1) * g  # lines 4, 18
            m_hat = self.m[name] / (1 - beta1**self.t)  # lines 6, 19, t counted from 1
            if self.v_star is None:
                self.v[name] = beta2 * self.v[name] + (1 - beta2) * g * g  # line 5, with its square
                denominator = (self.v[name] / (1 - beta2**self.t)).sqrt() + self.eps  # line 7
            else:
                denominator = (self.v_star[name] + self.method.eps_root).sqrt() + self.eps
            w = w - self.lr * m_hat / denominator  # lines 8, 20
            if mask is not None and self.method.once:
                w = w * mask
            self.w[name] = w
        if self.method.freeze and self.t == self.method.start:  # line 11
            correction = 1 - beta2**self.t if self.method.correct_bias else 1.0
            self.v_star = {name: v / correction for name, v in self.v.items()}
        self._choose_masks()  # line 16
