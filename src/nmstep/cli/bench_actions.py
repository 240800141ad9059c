"""What ``nmstep bench`` does: packs a model, and shows how fast it is and how much it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nmstep.bench import Measured, Subject, load_subject, measure
from nmstep.cli import commands
from nmstep.cli.bench_tables import break_even_table, footprint_table, layer_table, model_table, verdict
from nmstep.cli.console import output, say, say_warning
from nmstep.cli.progress import BenchBar
from nmstep.cli.sources import refuse_dense
from nmstep.deploy import packed_layers
from nmstep.deploy.speed import model_speed
from nmstep.experiments.environment import environment
from nmstep.files import write_json
from nmstep.packages import require

__all__ = ["bench_model", "dtype_of", "quick_verdict"]

_RESTLESS = 1.5
_QUICK = 2.0  # seconds
_DRAWN = (".png", ".svg", ".pdf")


def bench_model(command: commands.Bench) -> int:
    """Measures a model and its packed layers and returns the exit status."""
    _check(command)
    if command.threads is not None:
        torch.set_num_threads(command.threads)
    refuse_dense(command.path, "measure")
    with BenchBar() as bar:
        subject = load_subject(
            command.path, pattern=command.pattern, tokens=command.tokens, dtype=dtype_of(command.dtype)
        )
        measured = measure(
            subject,
            batches=command.batches,
            rounds=command.rounds,
            seconds=command.seconds,
            memory=not command.no_memory,
            tell=bar.tell,
        )
    facts = environment()
    _show(facts, subject, measured, command.batches[0])
    if measured.unrest() > _RESTLESS:
        say_warning(
            f"rounds of one program differ by {measured.unrest():.1f} times: something else keeps this "
            f"machine busy. Measure again when it does not"
        )
    about = {"subject": subject.summary(), "example": subject.what}
    _write({**facts, **about, **measured.record()}, command.out, command.plot)
    return 0


def quick_verdict(path: Path) -> str:
    """Returns in a sentence how fast a packed file's model is on one example; takes a few seconds."""
    subject = load_subject(path)
    if all(layer.dense_from == 0 for layer in packed_layers(subject.packed).values()):
        return "Its layers are small and run dense: the file is smaller, the speed is the same."
    return verdict(1, model_speed(subject.dense, subject.packed, subject.use(1), seconds=_QUICK))


def dtype_of(name: str | None) -> torch.dtype | None:
    """Returns torch's dtype of a name, or None."""
    return None if name is None else getattr(torch, name)


def _check(command: commands.Bench) -> None:
    if command.rounds < 3 or not command.batches or min(command.batches) < 1:
        raise ValueError("--rounds is at least 3, and --batches are at least 1 example each")
    if command.seconds <= 0:
        raise ValueError(f"--seconds {command.seconds}: expected more than 0")
    for path in (command.out, command.plot):
        if path is not None and not path.parent.is_dir():  # before minutes of measuring
            raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    if command.out is not None or command.plot is not None:
        require("matplotlib", "the plot of a bench")
    if command.plot is not None and command.plot.suffix not in _DRAWN:
        raise ValueError(
            f"cannot draw into {str(command.plot)!r}: expected {', '.join(_DRAWN[:2])} or {_DRAWN[2]}"
        )


def _show(facts: dict[str, Any], subject: Subject, measured: Measured, first: int) -> None:
    threads = torch.get_num_threads()
    say(
        f"{facts['cpu']}, {threads} thread{'s' if threads > 1 else ''}, torch {facts['torch']}, "
        f"kernels: {facts['kernels']}"
    )
    say(subject.summary())
    say(f"An example is {subject.what}.")
    output.print(model_table(measured))
    for size, speed in measured.speeds.items():
        say(verdict(size, speed))
    output.print()
    output.print(layer_table(measured.layers, first))
    say("x: times as fast, the median of the rounds; * marks the fastest of the three.")
    output.print()
    output.print(break_even_table(measured.layers))
    output.print(footprint_table(measured.footprints))


def _write(record: dict[str, Any], out: Path | None, plot: Path | None) -> None:
    """Writes figures and plot; the plot is beside the figures unless it has a place of its own."""
    if out is not None:
        write_json(out, record)
        say(f"Figures: {out}")
        plot = plot or out.with_suffix(".png")
    if plot is not None:
        from nmstep.reports.plots import plot_speed

        # As a reader of the file would see it: plots are made from what is written.
        plot_speed(json.loads(json.dumps(record))).savefig(plot)
        say(f"Plot: {plot}")
