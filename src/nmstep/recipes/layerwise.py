"""Finding one N for each layer: DominoSearch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from nmstep.kernels import nm_mask
from nmstep.patterns import NMPattern
from nmstep.plan import OnIndivisible, Rule, plan
from nmstep.recipes.layer_costs import count_products
from nmstep.recipes.layer_search import By, Layer, Search, Settings, thresholds
from nmstep.sparsity_plan import SparsityPlan, unwrap

__all__ = ["TargetNotReachedError", "dominosearch"]

Batch = TypeVar("Batch")


class TargetNotReachedError(RuntimeError):
    """The search ran out of steps; the text says what each layer reached.

    Attributes:
        plan: what was reached, usable as it is.
    """

    def __init__(self, message: str, plan: SparsityPlan) -> None:
        super().__init__(message)
        self.plan = plan


def dominosearch(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: Callable[[nn.Module, Batch], Tensor],
    *,
    m: int = 16,
    target: float = 0.875,
    by: By = "parameters",
    lr: float = 0.01,
    penalty: float = 0.1,
    double_penalty_after: int = 30_000,
    double_penalty_every: int = 10_000,
    regularize_every: int = 5,
    check_every: int = 100,
    quorum: float = 0.75,
    max_steps: int = 100_000,
    seed: int = 0,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    rules: Mapping[str, str | NMPattern | Rule | None] | None = None,
    on_indivisible: OnIndivisible = "dense",
) -> SparsityPlan:
    """Returns a plan with an N of its own for each layer, out of {1, 2, 4, …, M}, found by training a copy.

    Every layer starts at n = M. The copy trains by plain SGD at masked weights, pruned weights get no
    gradient, and every few steps the kept weights are pulled to zero, harder in layers that cost more and
    are denser than the Erdős–Rényi-kernel rule wants them. A layer whose groups mostly have fewer than n
    weights above their threshold (the mean of the M/2 smallest magnitudes at the start) loses one of its n;
    at a power of two its pattern follows. The plan is for any recipe; the paper trains it with
    ``SRSTE(plan, refine=5e-4)``.

    Args:
        model: dense and trained; left as it is, in whichever mode it is.
        batches: walked from the start again whenever they end: a list, a DataLoader.
        loss_fn: ``loss_fn(model, batch)`` returns the scalar loss; the batch must be on the model's device.
        m: M of every group, at least 2.
        target: share of the planned layers' weights that is to be zero; at most 1 − 1/M.
        by: weigh layers by their ``"parameters"``, or by their multiplications (``"flops"``) on the first
            batch.
        lr: of SGD.
        penalty: λ, the pull to zero.
        double_penalty_after: steps before λ doubles for the first time.
        double_penalty_every: steps between doublings, of which there are six.
        regularize_every: steps between two pulls.
        check_every: steps between two looks at the groups; a layer's n falls by at most one at each.
        quorum: share of a layer's groups that must agree.
        max_steps: SGD steps after which the search gives up.
        seed: of torch's generators while the search runs (dropout, shuffling); they are put back afterwards.
        include: as for :func:`nmstep.plan`.
        exclude: as for :func:`nmstep.plan`.
        rules: as for :func:`nmstep.plan`. A pattern other than M:M is kept as it is and counted; M:M, needed
            where a ``dim`` must be named, lets the search decide.
        on_indivisible: as for :func:`nmstep.plan`. Short groups are searched as if padded with zeros.

    Raises:
        TargetNotReachedError: ``max_steps`` were not enough; it carries what was reached.
        ValueError: an argument is out of range, the target is out of reach, the batches end at once, or the
            loss is not one finite number.

    Source:
        DominoSearch (Sun et al. 2021).
    Deviation:
        Where the paper is silent: f and the overall sparsity use the layers' patterns, not the counts
        between two powers of two; at a check the layers with the largest f come first, and the search ends
        as soon as the target is reached, so that it is passed by one layer at most; a layer that is still at
        n = M at the end is left dense. So that every target up to 1 − 1/M stays within reach, the
        Erdős–Rényi goals are never sparser than 1:M, with ``by="flops"`` they share out multiplications
        instead of weights, and f is never negative. Multiplications are those of the dense layer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, inputs = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(8, 16)
        >>> found = dominosearch(
        ...     model, [inputs], lambda net, x: net(x).square().mean(), m=4, target=0.6, check_every=1, lr=0.1
        ... )
        >>> [(entry.name, str(entry.pattern)) for entry in found.sparse]
        [('0.weight', '1:4'), ('2.weight', '2:4')]
    """
    settings = Settings(
        m=m,
        target=target,
        by=by,
        lr=lr,
        penalty=penalty,
        double_penalty_after=double_penalty_after,
        double_penalty_every=double_penalty_every,
        regularize_every=regularize_every,
        check_every=check_every,
        quorum=quorum,
        max_steps=max_steps,
    )
    base = plan(
        model, NMPattern(m, m), include=include, exclude=exclude, rules=rules, on_indivisible=on_indivisible
    )
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        trained = copy.deepcopy(unwrap(model)).train()
        stream = _cycle(batches)
        search = _prepare(trained, base, settings, lambda: loss_fn(trained, next(stream)))
        return _run(search, trained, lambda: loss_fn(trained, next(stream)))


def _cycle(batches: Iterable[Batch]) -> Iterator[Batch]:
    walked = 0
    while True:
        before = walked
        for batch in batches:
            walked += 1
            yield batch
        if walked == before:
            raise ValueError(
                f"batches ended after {walked} batch(es) and cannot be walked again: pass a list or a "
                f"DataLoader with at least one batch, not a generator"
            )


def _prepare(
    model: nn.Module, base: SparsityPlan, settings: Settings, loss_of: Callable[[], Tensor]
) -> Search:
    """Returns the search at its start: thresholds taken, multiplications counted on the first batch."""
    weights = base.resolve(model)
    products = count_products(model, base.sparse, loss_of)
    layers = []
    for entry, count in zip(base.sparse, products, strict=True):
        weight = weights[entry.name].requires_grad_()
        assert entry.pattern is not None
        searched = entry.pattern == NMPattern(settings.m, settings.m)
        layers.append(
            Layer(
                entry=entry,
                weight=weight,
                products=count,
                threshold=thresholds(weight, entry) if searched else None,
                n=entry.pattern.n,
            )
        )
    return Search(layers, base, settings)


def _run(search: Search, model: nn.Module, loss_of: Callable[[], Tensor]) -> SparsityPlan:
    settings = search.settings
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=settings.lr)
    for step in range(1, settings.max_steps + 1):
        if search.is_done:
            return search.plan()
        pull = settings.penalty_at(step) if step % settings.regularize_every == 0 else 0.0
        _train_step(search.layers, optimizer, loss_of, pull, step)
        if step % settings.check_every == 0:
            search.check()
    if search.is_done:
        return search.plan()
    raise TargetNotReachedError(
        f"dominosearch did not reach target={settings.target} in max_steps={settings.max_steps}, it reached "
        f"{search.summary()}\nraise max_steps or penalty, lower check_every, quorum or target, or train with "
        f"what was reached (this error's .plan)",
        search.plan(),
    )


def _train_step(
    layers: Sequence[Layer],
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], Tensor],
    pull: float,
    step: int,
) -> None:
    """Takes one step at masked weights, after which pruned weights are back as they were."""
    cuts = [_cut(layer) for layer in layers]
    with torch.no_grad():
        pruned = [x.weight.masked_fill(~cut, 0) for x, cut in zip(layers, cuts, strict=True)]
        for layer, cut in zip(layers, cuts, strict=True):
            layer.weight.masked_fill_(cut, 0)
    optimizer.zero_grad()
    _checked(loss_of(), step).backward()
    with torch.no_grad():
        for layer, cut in zip(layers, cuts, strict=True):
            if layer.weight.grad is None:
                layer.weight.grad = torch.zeros_like(layer.weight)
            layer.weight.grad.masked_fill_(cut, 0)
            if pull and layer.threshold is not None:
                layer.weight.grad.add_(layer.weight, alpha=pull * layer.factor)
    optimizer.step()
    with torch.no_grad():
        for layer, part in zip(layers, pruned, strict=True):
            layer.weight.add_(part)


def _cut(layer: Layer) -> Tensor:
    """Returns True where the layer's pattern prunes."""
    if layer.pattern.is_dense:  # as every layer is for a while: no need to sort
        return torch.zeros_like(layer.weight, dtype=torch.bool)
    return ~nm_mask(layer.weight, layer.pattern, dim=layer.entry.dim or 0, pad=layer.entry.pad)


def _checked(loss: Tensor, step: int) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = (
            f"a tensor of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor)
            else f"a {type(loss).__name__}"
        )
        raise ValueError(f"loss_fn(model, batch) must return the loss as a scalar tensor, got {what}")
    if not bool(loss.isfinite()):
        raise ValueError(f"the loss is {loss.item()} at step {step} of the search: lower lr or penalty")
    return loss
