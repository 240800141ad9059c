"""Packed and semi-structured layers on a GPU against torch's dense ones: how many times as fast.

    python benchmarks/packed_gpu.py [--rounds 15] [--parts packed_gpu semi_structured] [--json FILE]
    NMSTEP_KERNELS=triton TRITON_INTERPRET=1 python benchmarks/packed_gpu.py --device cpu --quick   # to try it out

Without a GPU it says so and measures nothing, but for the second line, which runs Triton's interpreter: its figures
mean nothing, and what torch.sparse multiplies is left out.

Each figure is of a graph of calls, without what Python does around them, on more layers than the caches hold.
The bar is a share of the ratio of bytes, which the packed layer cannot exceed where memory is the limit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import record
import torch
from bars import OF_BYTES, SEMI_STRUCTURED, SPARSE_PATTERNS
from packed_layers import speed_up
from record import Part, Row
from settings import Settings, parser, settings_of
from torch import Tensor, nn

import nmstep
from nmstep.deploy import PackedLinear, to_semi_structured
from nmstep.files import write_json
from nmstep.timing import Step

__all__ = ["PARTS"]

SHAPES = ((4096, 4096), (11008, 4096), (3072, 768))  # outputs × inputs
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SMALL = (1, 4, 16)  # rows that have a bar
MORE = (32, 64, 128, 256, 512)  # rows that show where the dense layer takes over
LARGE = ((4096, 4096), (8192, 8192), (11008, 4096))
MANY = (1, 16, 64, 256, 1024, 4096)  # rows for the sparse matrix units; the last has a bar
_READ = 1 << 28  # packed bytes that a graph reads, several times what a cache holds
_LAYERS = 256  # of a graph, at most


def packed_rows(settings: Settings) -> Iterator[Row]:
    """Yields the rows of packed layers: every shape, pattern and dtype, with few rows of the input and more."""
    for outputs, inputs in settings.pick(SHAPES, ((64, 64),)):
        for pattern in SPARSE_PATTERNS:
            for name, dtype in DTYPES.items():
                layer = _layer(outputs, inputs, pattern, dtype, settings)
                packed = nmstep.pack(layer, pattern, fallback=False)
                assert isinstance(packed, PackedLinear)
                bytes_ = packed.parts.values.nbytes + packed.parts.indices.nbytes
                ratio = layer.weight.nbytes / bytes_
                yield from _series(
                    layer,
                    packed,
                    settings.pick(min(_LAYERS, math.ceil(_READ / bytes_)), 2),
                    {rows: round(OF_BYTES * ratio, 2) if rows in SMALL else None for rows in SMALL + MORE},
                    settings,
                    f"{outputs} × {inputs}, {pattern}, {name}: {ratio:.2f} times fewer bytes",
                    upwards=False,
                )


def semi_structured_rows(settings: Settings) -> Iterator[Row]:
    """Yields the rows of 2:4 layers for the sparse matrix units in bfloat16; none without a GPU."""
    if settings.device.type != "cuda":
        return
    for outputs, inputs in settings.pick(LARGE, ((128, 128),)):
        layer = _layer(outputs, inputs, "2:4", torch.bfloat16, settings)
        made = to_semi_structured(layer)
        layers = settings.pick(min(_LAYERS, math.ceil(_READ / layer.weight.nbytes)), 2)
        bars = {rows: SEMI_STRUCTURED if rows == MANY[-1] else None for rows in MANY}
        section = f"{outputs} × {inputs}, 2:4, bf16, {made.backend}"
        again = [made.model, *(to_semi_structured(layer).model for _ in range(layers - 1))]
        yield from _series(layer, again, layers, bars, settings, section, upwards=True)


def _layer(outputs: int, inputs: int, pattern: str, dtype: torch.dtype, settings: Settings) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, device=settings.device).requires_grad_(False)
    layer.weight.mul_(nmstep.nm_mask(layer.weight, pattern))
    return layer.to(dtype)


def _series(
    dense: nn.Linear,
    sparse: nn.Module | Sequence[nn.Module],
    layers: int,
    bars: Mapping[int, float | None],
    settings: Settings,
    section: str,
    *,
    upwards: bool,
) -> Iterator[Row]:
    """Yields a row for each number of rows of the input, and the number at which one layer overtakes the other."""
    ours = sparse if isinstance(sparse, Sequence) else [copy.deepcopy(sparse) for _ in range(layers)]
    theirs = [copy.deepcopy(dense) for _ in range(layers)]
    faster: dict[int, bool] = {}
    for rows, bar in bars.items():
        x = torch.randn(rows, dense.in_features, dtype=dense.weight.dtype, device=settings.device)
        name = f"{rows} row{'s' if rows > 1 else ''}"
        with torch.inference_mode():
            row = speed_up(_graph(ours, x), _graph(theirs, x), settings, section=section, name=name, bar=bar)
        assert row.ms is not None
        assert row.other_ms is not None
        faster[rows] = row.value > 1
        yield replace(row, ms=row.ms / layers, other_ms=row.other_ms / layers)
    even = _from(faster) if upwards else _up_to(faster)
    name = "faster from so many rows on" if upwards else "faster up to so many rows"
    if math.isfinite(even):
        yield Row(section=section, name=name, value=even, low=even, high=even)


def _up_to(faster: Mapping[int, bool]) -> float:
    """Returns the most rows up to which all were faster; 0 where the fewest were not.

    Example:
        >>> _up_to({1: True, 4: True, 16: False, 32: True}), _up_to({1: False})
        (4.0, 0.0)
    """
    most = 0.0
    for rows in sorted(faster):
        if not faster[rows]:
            break
        most = float(rows)
    return most


def _from(faster: Mapping[int, bool]) -> float:
    """Returns the fewest rows from which on all were faster; infinity where the most were not.

    Example:
        >>> _from({1: True, 4: False, 16: True, 32: True}), _from({1: False})
        (16.0, inf)
    """
    fewest = math.inf
    for rows in sorted(faster, reverse=True):
        if not faster[rows]:
            break
        fewest = float(rows)
    return fewest


def _graph(layers: Sequence[nn.Module], x: Tensor) -> Step:
    """Returns what calls each layer once: a captured graph on a GPU."""

    def run() -> None:
        for layer in layers:
            layer(x)

    if x.device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # compiles what is to be captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], None] = graph.replay
    return replay


PARTS = {
    part.name: part
    for part in (
        Part(
            name="packed_gpu",
            title="A packed layer on a GPU: times as fast as torch's dense one of the same dtype",
            measure=packed_rows,
            unit="times",
        ),
        Part(
            name="semi_structured",
            title="A semi-structured layer: times as fast as torch's dense one",
            measure=semi_structured_rows,
            unit="times",
        ),
    )
}


def main() -> None:
    """Runs the parts that were asked for, or says that there is no GPU."""
    flags = parser(__doc__)
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="both by default")
    flags.set_defaults(device=torch.device("cuda"))
    arguments = flags.parse_args()
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        flags.exit(
            1, "There is no GPU here, so nothing was measured; --help says how to try this out on a CPU.\n"
        )
    if arguments.device.type != "cuda" and not arguments.quick:
        flags.error("these layers are measured on a GPU; on a CPU this runs with --quick only")
    settings = settings_of(arguments)
    parts = [PARTS[name] for name in arguments.parts]
    facts = record.head(settings)
    for part in parts:
        record.take(part, settings)
        record.show(part)
        if arguments.json:
            write_json(arguments.json, record.record(parts, facts))
    record.missed(parts)


if __name__ == "__main__":
    main()
