"""What a layer costs and what it can spare: products in a forward pass, and the Erdős–Rényi-kernel rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nmstep.sparsity_plan import PlanEntry

__all__ = ["count_products", "erk_sparsities", "importance", "signed_share"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OUT_PROJECTION = "out_proj.weight"
_ATTENTION_INPUTS = {"q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2, _OUT_PROJECTION: 0}


def erk_sparsities(
    shapes: Sequence[tuple[int, ...]],
    target: float,
    *,
    sizes: Sequence[float] | None = None,
    floor: float = 0.0,
) -> list[float]:
    """Returns each layer's sparsity by the Erdős–Rényi-kernel rule; all layers together have ``target``.

    A layer's density is proportional to the sum of its dimensions, kernel ones included, over their product.
    Layers for which that would exceed 1 stay dense, and the others make up for it.

    Args:
        shapes: of the layers' weights.
        target: share of all weights that is to be zero, from 0 up to 1 − ``floor``.
        sizes: what each layer counts in the total; its number of weights by default.
        floor: density below which no layer goes.

    Source:
        Evci et al. 2020 (RigL), section 3; used by DominoSearch (Sun et al. 2021).
    Deviation:
        The floor: the published rule may ask for layers sparser than 1:M, which then cannot be had.

    Example:
        >>> erk_sparsities([(4, 4), (16, 16)], 0.5)  # in proportion, the first would keep 27 of 16
        [0.0, 0.53125]
    """
    ratios = [sum(shape) / math.prod(shape) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes] if sizes is None else sizes

    def densities(scale: float) -> list[float]:
        return [min(1.0, max(floor, scale * ratio)) for ratio in ratios]

    def kept(scale: float) -> float:
        return sum(size * density for size, density in zip(sizes, densities(scale), strict=True))

    budget = (1 - target) * sum(sizes)
    # What is kept grows with the scale, along a line between two points where a layer meets a bound.
    points = sorted({0.0, *(floor / ratio for ratio in ratios), *(1 / ratio for ratio in ratios)})
    scale = points[0] if kept(points[0]) >= budget else points[-1]
    for low, high in itertools.pairwise(points):
        if kept(low) < budget <= kept(high):
            scale = low + (high - low) * (budget - kept(low)) / (kept(high) - kept(low))
    return [1 - density for density in densities(scale)]


def signed_share(values: Sequence[float]) -> list[float]:
    """Returns the values over their largest magnitude, so in −1 … 1; zeros where all are zero.

    Example:
        >>> signed_share([1.0, -4.0])
        [0.25, -1.0]
    """
    largest = max(map(abs, values), default=0.0)
    return [value / largest if largest else 0.0 for value in values]


def importance(products: Sequence[float], densities: Sequence[float], goals: Sequence[float]) -> list[float]:
    """Returns DominoSearch's factor of each layer, ``f = ½ ERK + ½ FLOP``: how hard it is pulled to zero.

    Args:
        products: multiplications of each dense layer in a forward pass.
        densities: share of weights that each layer's current pattern keeps.
        goals: sparsity that each layer should have, from :func:`erk_sparsities`.

    Source:
        DominoSearch (Sun et al. 2021), layer-wise redundancy.
    Deviation:
        f is at least 0. Below that, which the published sum can be for a layer sparser than its goal, the
        pull would push weights away from zero, ever faster.

    Example:
        >>> importance([16, 256], [1.0, 1.0], [0.0, 0.5])
        [0.03125, 1.0]
    """
    erk = signed_share([goal - (1 - density) for goal, density in zip(goals, densities, strict=True)])
    flop = signed_share([count * density for count, density in zip(products, densities, strict=True)])
    return [max(0.0, 0.5 * e + 0.5 * f) for e, f in zip(erk, flop, strict=True)]


def count_products(model: nn.Module, entries: Sequence[PlanEntry], forward: Callable[[], Any]) -> list[float]:
    """Returns the multiplications by each entry's weight while ``forward`` runs, the weight taken as dense.

    Args:
        model: has the entries' parameters.
        entries: whose weights to count for.
        forward: runs the model once, in training mode (in evaluation mode torch fuses whole
            transformer layers, and their attention is not seen).

    Deviation:
        The paper counts convolutions and linear layers. A parameter of no known layer kind counts one
        product per weight for each vector that its module returns, an upper bound for sparse experts.
    """
    counts = [0.0] * len(entries)
    handles = []

    def counter(i: int, local: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            counts[i] += _rows(module, local, args, kwargs, output) * entries[i].numel

        return hook

    for i, entry in enumerate(entries):
        for module, local in {_user(model, name) for name in (entry.name, *entry.aliases)}:
            handles.append(module.register_forward_hook(counter(i, local), with_kwargs=True))
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _user(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the module whose forward pass uses the parameter, and its name in there."""
    path, _, local = name.rpartition(".")
    above, _, last = path.rpartition(".")
    if last == "out_proj":
        attention = model.get_submodule(above)
        if isinstance(attention, nn.MultiheadAttention):  # it never calls out_proj, but reads its weight
            return attention, _OUT_PROJECTION
    return model.get_submodule(path), local


def _rows(module: nn.Module, local: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> float:
    """Returns how often a call of ``module`` multiplies by each weight of its parameter ``local``."""
    if isinstance(module, nn.MultiheadAttention):
        inputs = [
            kwargs.get(name, args[j] if j < len(args) else None)
            for j, name in enumerate(("query", "key", "value"))
        ]
        vectors = [x.numel() / x.shape[-1] for x in inputs if isinstance(x, Tensor) and x.numel()]
        if len(vectors) < 3:
            return 0.0
        # in_proj_weight stacks three projections, each used on one input.
        return sum(vectors) / 3 if local == "in_proj_weight" else vectors[_ATTENTION_INPUTS[local]]
    if isinstance(module, _TRANSPOSED):
        (inputs,) = [*args, *kwargs.values()][:1]
        return float(inputs.numel() / module.in_channels)
    result = next(
        (x for x in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(x, Tensor)),
        None,
    )
    if result is None or not result.numel():
        return 0.0
    if isinstance(module, _CONVOLUTIONS):
        return float(result.numel() / module.out_channels)
    return float(result.numel() / result.shape[-1])
