"""The flags that all benchmarks share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from nmstep.timing import Step, Timing, in_turn

__all__ = ["Settings", "parser", "settings_of"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a benchmark runs.

    Args:
        rounds: that two programs take turns.
        threads: of torch, which nmstep's kernels use too.
        device: where the tensors lie.
        megaweights: millions of weights of the large layers; None for each part's own.
        batch: rows or sequences of a training iteration; None for each part's own.
        length: tokens of a sequence.
        quick: tiny sizes, to try the programs out; the figures mean nothing then.
    """

    rounds: int
    threads: int
    device: torch.device
    megaweights: float | None
    batch: int | None
    length: int
    quick: bool

    def pick(self, full: T, quick: T) -> T:
        """Returns the first, or the second of a quick run."""
        return quick if self.quick else full

    def in_turn(self, ours: Step, theirs: Step, *, calls: int | None = None) -> Timing:
        """Returns the ratio of two programs that take turns."""
        block = self.pick(100, 10)  # as many as lie between two samples of layers
        return in_turn(ours, theirs, rounds=self.rounds, calls=calls, block=block, device=self.device)

    def weights(self, full: int, quick: int) -> int:
        """Returns the number of weights of a large layer."""
        return self.pick(full, quick) if self.megaweights is None else round(self.megaweights * 1e6)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the shared flags."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=_rounds, help="rounds in turn: 15, or 3 with --quick")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    made.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    made.add_argument("--megaweights", type=float, help="millions of weights of the large layers")
    made.add_argument("--batch", type=int, help="rows or sequences of a training iteration")
    made.add_argument("--length", type=int, default=128, help="tokens of a sequence (%(default)s)")
    made.add_argument("--quick", action="store_true", help="tiny sizes, to try it out: no figures")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return made


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Returns the settings of a parsed command line, and gives torch its threads."""
    torch.set_num_threads(arguments.threads)
    return Settings(
        rounds=arguments.rounds or (3 if arguments.quick else 15),
        threads=arguments.threads,
        device=arguments.device,
        megaweights=arguments.megaweights,
        batch=arguments.batch,
        length=arguments.length,
        quick=arguments.quick,
    )


def _rounds(text: str) -> int:
    if int(text) < 3:
        raise argparse.ArgumentTypeError("the spread is without the two extremes, so at least 3")
    return int(text)
