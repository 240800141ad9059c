"""The commands that run finished models, and their arguments, as tyro reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["Bench", "Export", "Pack"]


_Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "int8"] | None,
    tyro.conf.arg(
        metavar="DTYPE",
        help="float32, bfloat16, float16 or int8, to hold kept weights in; none for their own.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write a checkpoint with its N:M weights packed, and read it back.

    Args:
        path: run folder; folder of transformers (save_pretrained) with N:M weights; or another checkpoint that
            says which of its weights are sparse.
        out: safetensors file to write; none for packed.safetensors beside the checkpoint.
    """

    path: tyro.conf.Positional[Path]
    out: Path | None = None
    dtype: _Dtype = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a sparse model for other programs: dense weights with their zeros.

    Args:
        path: run folder; for dense alone also a packed file, a folder of transformers (save_pretrained) with N:M
            weights, or another checkpoint that says which of its weights are sparse.
        out: folder to write, new or empty: model.safetensors and config.json, or model.onnx.
        format: dense, onnx, or both.
    """

    path: tyro.conf.Positional[Path]
    out: Path
    format: Annotated[tuple[Literal["dense", "onnx"], ...], tyro.conf.arg(metavar="FORMAT ...")] = ("dense",)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure a packed model against its dense one, on this machine's CPU.

    Args:
        path: run folder; folder of transformers (save_pretrained) with N:M weights; packed file beside the
            config.json of either; or bert-base, gpt2 or resnet18, for a model of that size with random weights.
        pattern: N weights kept of every M, for random weights; none for 2:4.
        batches: examples at a time; layers are timed at the first.
        tokens: that an encoder of transformers reads, or a decoder makes; none for 128 and 32.
        rounds: times that the models take turns, at least 3.
        seconds: that the rounds at one number of examples take at most; three take place in any case.
        threads: of torch; none for its own choice.
        no_memory: start no processes that see what each of the models takes in memory.
        out: JSON file to write the figures to.
        plot: PNG, SVG or PDF file to draw them in; none for a PNG beside --out.
    """

    path: tyro.conf.Positional[Path]
    pattern: str | None = None
    dtype: _Dtype = None
    batches: tuple[int, ...] = (1, 4, 16)
    tokens: int | None = None
    rounds: int = 15
    seconds: float = 10.0
    threads: int | None = None
    no_memory: bool = False
    out: Path | None = None
    plot: Path | None = None
