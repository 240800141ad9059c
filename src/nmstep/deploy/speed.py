"""How fast a packed model is on this machine, as a whole and layer by layer, against the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nmstep.deploy.layer import PackedLayer
from nmstep.deploy.layers import PackedConv
from nmstep.deploy.packing import packed_layers
from nmstep.patterns import NMPattern
from nmstep.timing import Timing, in_turns

__all__ = ["ROWS", "LayerKind", "LayerSpeed", "Rung", "Speed", "break_even", "layer_kinds", "model_speed"]
__all__ += ["layer_speed"]

#: Rows at which layers are compared to find out from how many on a dense product is faster.
ROWS = (1, 4, 16, 64, 256, 1024)
_BLOCK = 20  # calls of a short layer in a round of the ladder, where there are many places to measure


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Dense over packed time: how many times as fast the packed one is.

    Args:
        fp32: against the dense one in float32.
        bf16: against the dense one in bfloat16, the stronger opponent where the processor has matrix units.
    """

    fp32: Timing
    bf16: Timing

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds of each of the three: ``"dense"``, ``"dense bf16"`` and ``"packed"``."""
        return {"dense": self.fp32.ms, "dense bf16": self.bf16.ms, "packed": self.fp32.other_ms}

    @property
    def times(self) -> dict[str, float]:
        """The same as multiples of packed time: the ratios, which an unsteady machine disturbs least."""
        return {"dense": self.fp32.ratio, "dense bf16": self.bf16.ratio, "packed": 1.0}

    @property
    def fastest(self) -> str:
        """Which of the three takes least time."""
        return min(self.times, key=lambda name: self.times[name])


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """Packed layers of one shape and pattern on inputs of one shape.

    Args:
        names: of the layers.
        layer: one of them.
        x: what the model gives it.
    """

    names: tuple[str, ...]
    layer: PackedLayer
    x: Tensor


@dataclass(frozen=True, kw_only=True)
class LayerSpeed(Speed):
    """The speed of packed layers of one shape and pattern on inputs of one shape.

    Args:
        names: of the layers.
        shape: of the dense weight.
        pattern: N kept of M.
        inputs: shape of what they are given.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    pattern: NMPattern
    inputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rung(Speed):
    """The speed of a packed layer at a number of rows.

    Args:
        rows: vectors that the layer multiplies at once; of a convolution, its windows.
    """

    rows: int


@torch.inference_mode()
def model_speed(
    dense: nn.Module,
    packed: nn.Module,
    run: Callable[[nn.Module], object],
    *,
    rounds: int = 15,
    seconds: float = 10.0,
) -> Speed:
    """Returns how much faster a packed model is than its dense one.

    Args:
        dense: in float32, on the CPU.
        packed: of the same weights.
        run: uses a model once; must take models in bfloat16 too.
        rounds: that the three models take turns, at least 3.
        seconds: that the rounds take at most; three take place in any case.
    """
    narrow = copy.deepcopy(dense).to(torch.bfloat16)
    opponents = (lambda: run(dense), lambda: run(narrow))
    fp32, bf16 = in_turns(opponents, lambda: run(packed), rounds=rounds, seconds=seconds)
    return Speed(fp32=fp32, bf16=bf16)


@torch.inference_mode()
def layer_kinds(packed: nn.Module, run: Callable[[nn.Module], object]) -> list[LayerKind]:
    """Returns the kinds of packed layers in a model, by shape, pattern and shape of their inputs.

    Args:
        packed: on the CPU, in float32.
        run: uses a model once; of a layer that is used several times, the last input counts, which in a decoder is
            one token.
    """
    kinds: dict[tuple[object, ...], list[str]] = {}
    seen = _inputs(packed, run)
    layers = packed_layers(packed)
    for name, x in seen.items():
        layer = layers[name]
        key = (type(layer), layer.like.extra_repr(), layer.shape, str(layer.pattern), tuple(x.shape))
        kinds.setdefault(key, []).append(name)
    return [
        LayerKind(names=tuple(names), layer=layers[names[0]], x=seen[names[0]].clone())
        for names in kinds.values()
    ]


@torch.inference_mode()
def layer_speed(kind: LayerKind, *, rounds: int = 15, seconds: float = 2.0) -> LayerSpeed:
    """Returns the speed of one kind of layer on what its model gives it.

    Args:
        kind: of packed layers, on the CPU, in float32.
        rounds: that layers take turns, at least 3.
        seconds: that the rounds take at most; three take place in any case.
    """
    layer = kind.layer
    fp32, bf16 = _against_dense(layer, [kind.x], rounds=rounds, seconds=seconds)[0]
    return LayerSpeed(
        fp32=fp32,
        bf16=bf16,
        names=kind.names,
        shape=layer.shape,
        pattern=layer.pattern,
        inputs=tuple(kind.x.shape),
    )


@torch.inference_mode()
def break_even(
    kind: LayerKind, rows: Sequence[int] = ROWS, *, rounds: int = 7, seconds: float = 1.0
) -> list[Rung]:
    """Returns the speed of a kind of layer at several numbers of rows, fewest first.

    A convolution takes whole examples: as many as have about that many windows, each number of them once.

    Args:
        kind: of layers.
        rows: numbers of rows.
        rounds: that layers take turns at each of them, at least 3.
        seconds: that the rounds of each number take at most; three take place in any case.
    """
    inputs = _ladder(kind, rows)
    speeds = _against_dense(kind.layer, [*inputs.values()], rounds=rounds, seconds=seconds, block=_BLOCK)
    return [
        Rung(rows=count, fp32=fp32, bf16=bf16) for count, (fp32, bf16) in zip(inputs, speeds, strict=True)
    ]


def _against_dense(
    packed: PackedLayer, inputs: Sequence[Tensor], *, rounds: int, seconds: float, block: int = 100
) -> list[list[Timing]]:
    """Returns dense fp32 and bf16 over packed time for each of several inputs."""
    dense = packed.dense()
    narrow = copy.deepcopy(dense).to(torch.bfloat16)
    found = []
    for x in inputs:
        y = x.to(torch.bfloat16)
        opponents = (partial(dense, x), partial(narrow, y))
        found.append(in_turns(opponents, partial(packed, x), rounds=rounds, seconds=seconds, block=block))
    return found


def _ladder(kind: LayerKind, rows: Sequence[int]) -> dict[int, Tensor]:
    """Returns inputs of a layer by their rows."""
    if not isinstance(kind.layer, PackedConv):
        return {count: torch.randn(count, kind.layer.tiling.columns) for count in sorted(set(rows))}
    space = len(kind.layer.shape) - 2
    example = kind.x.reshape(-1, *kind.x.shape[-space - 1 :])[:1].float()
    windows = kind.layer(example).numel() // kind.layer.tiling.rows
    examples = sorted({max(1, count // windows) for count in rows})
    return {count * windows: example.repeat(count, *[1] * (space + 1)) for count in examples}


def _inputs(packed: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, Tensor]:
    """Returns what each packed layer is given when the model is used once; the last time counts."""
    seen: dict[str, Tensor] = {}
    layers = packed_layers(packed)
    names = {id(layer): name for name, layer in layers.items()}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[names[id(layer)]] = inputs[0]

    handles = [layer.register_forward_pre_hook(look) for layer in layers.values()]
    try:
        run(packed)
    finally:
        for handle in handles:
            handle.remove()
    return seen
