"""How fast a packed model is on this machine, as a whole and layer by layer, against the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmstep.deploy.layer import PackedLayer
from nmstep.deploy.packing import packed_layers
from nmstep.patterns import NMPattern
from nmstep.timing import Timing, in_turn

__all__ = ["LayerSpeed", "Speed", "layer_speeds", "model_speed"]


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
    def fastest(self) -> str:
        """Which of the three takes least time: ``"packed"``, ``"dense"`` or ``"dense bf16"``."""
        times = {"packed": self.fp32.other_ms, "dense": self.fp32.ms, "dense bf16": self.bf16.ms}
        return min(times, key=lambda name: times[name])


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


@torch.inference_mode()
def model_speed(
    dense: nn.Module, packed: nn.Module, run: Callable[[nn.Module], object], *, rounds: int = 15
) -> Speed:
    """Returns how much faster a packed model is than its dense one.

    Args:
        dense: in float32, on the CPU.
        packed: of the same weights.
        run: uses a model once; must take models in bfloat16 too.
        rounds: that two models take turns.
    """
    narrow = copy.deepcopy(dense).to(torch.bfloat16)
    return Speed(
        fp32=in_turn(lambda: run(dense), lambda: run(packed), rounds=rounds),
        bf16=in_turn(lambda: run(narrow), lambda: run(packed), rounds=rounds),
    )


@torch.inference_mode()
def layer_speeds(
    packed: nn.Module, run: Callable[[nn.Module], object], *, rounds: int = 15
) -> list[LayerSpeed]:
    """Returns the speeds of a model's packed layers, each kind measured once, on inputs that the model gives it.

    Args:
        packed: on the CPU, in float32.
        run: uses a model once.
        rounds: that two layers take turns.
    """
    kinds: dict[tuple[object, ...], list[str]] = {}
    seen = _inputs(packed, run)
    layers = packed_layers(packed)
    for name, x in seen.items():
        layer = layers[name]
        kinds.setdefault((layer.shape, str(layer.pattern), tuple(x.shape)), []).append(name)
    return [_layer_speed(tuple(names), layers[names[0]], seen[names[0]], rounds) for names in kinds.values()]


def _layer_speed(names: tuple[str, ...], packed: PackedLayer, x: Tensor, rounds: int) -> LayerSpeed:
    dense = packed.dense()
    narrow, x_narrow = copy.deepcopy(dense).to(torch.bfloat16), x.to(torch.bfloat16)
    return LayerSpeed(
        fp32=in_turn(lambda: dense(x), lambda: packed(x), rounds=rounds),
        bf16=in_turn(lambda: narrow(x_narrow), lambda: packed(x), rounds=rounds),
        names=names,
        shape=packed.shape,
        pattern=packed.pattern,
        inputs=tuple(x.shape),
    )


def _inputs(packed: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, Tensor]:
    """Returns what each packed layer is given when the model is used once; the first time counts."""
    seen: dict[str, Tensor] = {}
    layers = packed_layers(packed)
    names = {id(layer): name for name, layer in layers.items()}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.setdefault(names[id(layer)], inputs[0].clone())

    handles = [layer.register_forward_pre_hook(look) for layer in layers.values()]
    try:
        run(packed)
    finally:
        for handle in handles:
            handle.remove()
    return seen
