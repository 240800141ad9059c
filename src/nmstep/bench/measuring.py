"""All that is measured of a subject: the whole model, its layers, its files and its memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nmstep.bench.footprint import Footprint, footprints
from nmstep.bench.subject import Subject
from nmstep.deploy.speed import LayerSpeed, Rung, Speed, break_even, layer_kinds, layer_speed, model_speed
from nmstep.timing import Timing

__all__ = ["Measured", "MeasuredLayer", "Tell", "measure"]

#: Is told what is measured next, and how much there is to measure in all, as far as that is known.
Tell = Callable[[str, int | None], None]


@dataclass(frozen=True, kw_only=True)
class MeasuredLayer:
    """A kind of layer.

    Args:
        speed: on what the model gives it.
        rungs: its speed at several numbers of rows, fewest first.
        dense_from: rows from which the layer itself uses a dense product; None for never, 0 for always.
    """

    speed: LayerSpeed
    rungs: Sequence[Rung]
    dense_from: int | None

    def wins(self, opponent: str) -> list[int]:
        """Returns the numbers of rows at which packed is faster than ``"dense"`` or ``"dense bf16"``."""
        return [rung.rows for rung in self.rungs if rung.times[opponent] > 1]

    def record(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            **asdict(self.speed),
            "pattern": str(self.speed.pattern),
            "dense_from": self.dense_from,
            "rungs": [asdict(rung) for rung in self.rungs],
            "packed_wins": {name: self.wins(name) for name in ("dense", "dense bf16")},
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured.

    Args:
        speeds: of the whole model, by number of examples.
        layers: its kinds of layers.
        footprints: bytes of the dense, the dense bf16 and the packed model.
        decoded: tokens that the model makes for each example, or None.
    """

    speeds: dict[int, Speed]
    layers: Sequence[MeasuredLayer]
    footprints: dict[str, Footprint]
    decoded: int | None

    def tokens_per_second(self, examples: int) -> dict[str, float] | None:
        """Returns how many tokens each of the three models makes, or None where none does."""
        if self.decoded is None:
            return None
        return {name: 1000 * examples * self.decoded / ms for name, ms in self.speeds[examples].ms.items()}

    def unrest(self) -> float:
        """Returns how far rounds lie apart, as a ratio, in the worst case of the model and usually in layers."""
        model = [_spread(timing) for speed in self.speeds.values() for timing in (speed.fp32, speed.bf16)]
        rungs = [_spread(rung.fp32) for layer in self.layers for rung in layer.rungs]
        return max(*model, statistics.median(rungs or [1.0]))

    def record(self) -> dict[str, Any]:
        """Returns JSON values."""
        model = [
            {
                "examples": size,
                **asdict(speed),
                "fastest": speed.fastest,
                "tokens_per_second": self.tokens_per_second(size),
            }
            for size, speed in self.speeds.items()
        ]
        return {
            "model": model,
            "layers": [layer.record() for layer in self.layers],
            "footprints": {name: asdict(footprint) for name, footprint in self.footprints.items()},
        }


def measure(
    subject: Subject,
    *,
    batches: Sequence[int],
    rounds: int = 15,
    seconds: float = 10.0,
    memory: bool = True,
    tell: Tell = lambda *_: None,
) -> Measured:
    """Returns what was measured of a subject, on this machine's CPU.

    Args:
        subject: the models.
        batches: numbers of examples; layers are timed on what they are given at the first.
        rounds: that the models take turns, at least 3.
        seconds: that the rounds of one number of examples take at most; three take place in any case. Layers get a
            fifth, and each of their numbers of rows a tenth.
        memory: False to start no processes that see what a model takes in memory.
        tell: hears of progress.

    Raises:
        OSError: there is no room for the models' files.
        RuntimeError: a process that loads one of them failed.
    """
    first = subject.use(batches[0])
    kinds = layer_kinds(subject.packed, first)
    total = len(batches) + 2 * len(kinds) + 3
    sized = footprints(subject, memory=memory, tell=lambda name: tell(f"{name}: file and memory", total))
    speeds = {}
    for size in batches:
        tell(f"the model, {size} example{'s' if size > 1 else ''}", total)
        run = subject.use(size)
        speeds[size] = model_speed(subject.dense, subject.packed, run, rounds=rounds, seconds=seconds)
    layers = []
    for kind in kinds:
        label = f"{'x'.join(map(str, kind.layer.shape))} {kind.layer.pattern}"
        tell(f"layers of {label}", total)
        speed = layer_speed(kind, rounds=rounds, seconds=seconds / 5)
        tell(f"break-even of {label}", total)
        # A layer that is held dense is the dense layer, however many rows there are.
        held = kind.layer.dense_from == 0
        rungs = [] if held else break_even(kind, rounds=max(3, rounds // 2), seconds=seconds / 10)
        layers.append(MeasuredLayer(speed=speed, rungs=rungs, dense_from=kind.layer.dense_from))
    return Measured(speeds=speeds, layers=layers, footprints=sized, decoded=subject.decoded)


def _spread(timing: Timing) -> float:
    return timing.high / timing.low
