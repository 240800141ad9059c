"""What ``nmstep bench`` does: packs a run's model and shows how fast it is, and which is fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table
from torch import nn

from nmstep.cli import commands
from nmstep.cli.console import output, say
from nmstep.deploy import pack
from nmstep.deploy.speed import LayerSpeed, Speed, layer_speeds, model_speed
from nmstep.experiments import RunConfig, load_task
from nmstep.experiments.environment import environment
from nmstep.experiments.weights import load_weights
from nmstep.files import write_json
from nmstep.sparsity_plan import SparsityPlan
from nmstep.tasks.task import Batch, Task
from nmstep.verify.files import open_path

__all__ = ["bench_run", "dtype_of"]


def bench_run(command: commands.Bench) -> int:
    """Times a run's model and its packed layers and returns the exit status."""
    if command.rounds < 3 or not command.batches or min(command.batches) < 1:
        raise ValueError("--rounds is at least 3, and --batches are at least 1 example each")
    if command.threads is not None:
        torch.set_num_threads(command.threads)
    task, dense, packed = _models(command.folder, dtype_of(command.dtype))
    facts = environment()
    threads = torch.get_num_threads()
    say(
        f"{facts['cpu']}, {threads} thread{'s' if threads > 1 else ''}, torch {facts['torch']}, "
        f"kernels: {facts['kernels']}"
    )
    speeds = {
        size: model_speed(dense, packed, _use(task, size), rounds=command.rounds) for size in command.batches
    }
    output.print(_model_table(speeds))
    layers = layer_speeds(packed, _use(task, command.batches[0]), rounds=command.rounds)
    output.print(_layer_table(layers, command.batches[0]))
    say("x: times as fast, the median of the rounds; * marks the fastest of the three.")
    say(f"In memory: {decimal(_bytes(packed))} packed, {decimal(_bytes(dense))} dense")
    if command.out is not None:
        write_json(command.out, _record(facts, speeds, layers))
        say(f"Figures: {command.out}")
    return 0


def dtype_of(name: str | None) -> torch.dtype | None:
    """Returns torch's dtype of a name, or None."""
    return None if name is None else getattr(torch, name)


def _models(folder: Path, dtype: torch.dtype | None) -> tuple[Task, nn.Module, nn.Module]:
    """Returns a run's task, its model, and that model packed."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} is no run folder: it holds no config.json")
    plan = open_path(folder).promise
    if not isinstance(plan, SparsityPlan):
        raise ValueError(f"the run in {str(folder)!r} is dense: there is nothing to pack")
    task = load_task(RunConfig.load(str(folder / "config.json")))
    dense = task.model()
    load_weights(dense, folder)
    dense.eval().requires_grad_(False)
    return task, dense, pack(dense, plan=plan, dtype=dtype)


def _use(task: Task, size: int) -> Callable[[nn.Module], object]:
    """Returns a program that gives a model one batch, in the model's own floating-point type."""
    batch = task.batch(0, seed=0, batch_size=size)
    inputs = {
        dtype: batch.inputs.to(dtype) if batch.inputs.is_floating_point() else batch.inputs
        for dtype in (torch.float32, torch.bfloat16)
    }

    def use(model: nn.Module) -> object:
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        return task.loss(model, Batch(inputs=inputs[dtype], targets=batch.targets, extras=batch.extras))

    return use


def _model_table(speeds: dict[int, Speed]) -> Table:
    table = _table("the whole model", ("examples",))
    for size, speed in speeds.items():
        table.add_row(f"{size}", *_cells(speed))
    return table


def _layer_table(layers: list[LayerSpeed], size: int) -> Table:
    table = _table(f"its layers, {size} example{'s' if size > 1 else ''}", ("weight", "pattern", "layers"))
    for layer in layers:
        shape = "x".join(map(str, layer.shape))
        table.add_row(shape, str(layer.pattern), f"{len(layer.names)}", *_cells(layer))
    return table


def _table(title: str, headers: tuple[str, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    for header in (*headers, "dense ms", "bf16 ms", "packed ms", "x dense", "x bf16"):
        table.add_column(header, justify="right")
    return table


def _cells(speed: Speed) -> list[str]:
    times = {"dense": speed.fp32.ms, "dense bf16": speed.bf16.ms, "packed": speed.fp32.other_ms}
    marked = [f"{ms:.3g}{'*' if name == speed.fastest else ''}" for name, ms in times.items()]
    return [*marked, f"{speed.fp32.ratio:.2f}", f"{speed.bf16.ratio:.2f}"]


def _bytes(model: nn.Module) -> int:
    return sum({t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())


def _record(facts: dict[str, Any], speeds: dict[int, Speed], layers: list[LayerSpeed]) -> dict[str, Any]:
    return {
        **facts,
        "model": [{"examples": size, **asdict(speed)} for size, speed in speeds.items()],
        "layers": [{**asdict(layer), "pattern": str(layer.pattern)} for layer in layers],
    }
