"""What ``nmstep export`` does: writes what other programs read, and says what was found on reading it back."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from torch import nn

from nmstep.cli import commands
from nmstep.cli.console import say
from nmstep.cli.sources import is_run, plan_in_zeros, refuse_dense
from nmstep.cli.tables import counts
from nmstep.deploy import Exported, ExportedOnnx, export_dense, export_onnx
from nmstep.deploy.exporting import is_pretrained
from nmstep.deploy.tensorrt import weights_for_tensorrt
from nmstep.experiments import RunConfig, load_task
from nmstep.experiments.weights import load_weights
from nmstep.files import new_folder, read_json
from nmstep.sparsity_plan import SparsityPlan
from nmstep.tasks.quiet import quiet_transformers
from nmstep.tasks.task import Task, evaluation_mode
from nmstep.verify import verify
from nmstep.verify.files import open_path

__all__ = ["export_run"]

_WEIGHTS, _GRAPH = "model.safetensors", "model.onnx"


def export_run(command: commands.Export) -> int:
    """Writes a run's model, or a checkpoint, in the formats asked for and returns the exit status."""
    formats: set[str] = set(command.format)
    if not formats:
        raise ValueError("--format is dense, onnx, or both")
    refuse_dense(command.path, "export")
    if is_run(command.path):
        task, model, plan, config = _run(command.path)
        dense, graph = _export_model(task, model, plan, config, formats, command.out)
    elif "onnx" in formats:
        raise ValueError(
            f"{str(command.path)!r} is no run folder, and an ONNX file needs the model itself: from Python, "
            f"nmstep.export_onnx(model, inputs, 'model.onnx')"
        )
    else:
        graph = None
        dense = export_dense(command.path, command.out, plan=plan_in_zeros(command.path))
    if dense is not None:
        size, where = decimal(dense.size), command.out / _WEIGHTS
        say(f"Dense: {where}, {size}; read back: {_found(dense)}, equal to the source")
        say(_way_to_load(command.out))
    if graph is not None:
        _tell_graph(graph, command.out / _GRAPH)
    say(f"Verify it anywhere: nmstep verify {shlex.quote(str(command.out))}")
    return 0


def _run(folder: Path) -> tuple[Task, nn.Module, SparsityPlan, dict[str, Any]]:
    """Returns a run's task, its trained model, the plan that it complies with, and its configuration."""
    plan = open_path(folder).promise
    assert isinstance(plan, SparsityPlan)  # of a run that is not dense
    verify(folder).raise_if_failed()
    task = load_task(RunConfig.load(str(folder / "config.json")))
    model = task.model()
    load_weights(model, folder)
    return task, model.eval(), plan, read_json(folder / "config.json")


def _export_model(
    task: Task, model: nn.Module, plan: SparsityPlan, config: dict[str, Any], formats: set[str], folder: Path
) -> tuple[Exported | None, ExportedOnnx | None]:
    """Writes a folder with all formats, or with nothing."""
    dense = graph = None
    with new_folder(folder) as out, _quiet(model):
        if "onnx" in formats:
            args, kwargs = _call(task, model)
            graph = export_onnx(model, args, out / _GRAPH, kwargs=kwargs, plan=plan)
        if "dense" in formats:
            dense = export_dense(model, out / "dense", plan=plan, config={"nmstep_run": config})
            for file in (out / "dense").iterdir():
                file.replace(out / file.name)
            (out / "dense").rmdir()
    return dense, graph


@torch.no_grad()
def _call(task: Task, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments that a task gives its model for two examples."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    batch = task.batch(0, seed=0, batch_size=2)
    try:
        with evaluation_mode(model):
            task.loss(model, batch)
    finally:
        handle.remove()
    # A task may use parts of its model in training, and not the model itself.
    return calls[0] if calls else ((batch.inputs,), dict(batch.extras))


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Hides the progress bars of transformers where the model is one of its own."""
    with (
        quiet_transformers(sys.modules["transformers"]) if is_pretrained(model) else contextlib.nullcontext()
    ):
        yield


def _found(exported: Exported) -> str:
    """Returns what verification found, as in ``4 weights 2:4``."""
    return counts(str(tensor.pattern) for tensor in exported.report.checked)


def _way_to_load(folder: Path) -> str:
    # Which transformers' models have, and no others.
    kinds = read_json(folder / "config.json").get("architectures")
    if isinstance(kinds, list) and kinds:
        return f"Load it: transformers.{kinds[0]}.from_pretrained({str(folder)!r})"
    return f"Load it: safetensors.torch.load_model(model, {str(folder / _WEIGHTS)!r})"


def _tell_graph(graph: ExportedOnnx, path: Path) -> None:
    say(
        f"ONNX: {path}, {decimal(graph.size)}; read back: {_found(graph)}; onnxruntime differs from torch by "
        f"{graph.difference:.1g} of the largest output"
    )
    inputs = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in graph.inputs.items())
    say(f"Inputs: {inputs}")
    fit, all_of = len(weights_for_tensorrt(graph.plan)), len(graph.plan.sparse)
    if fit:
        say(
            f"TensorRT may take sparse kernels for {fit} of {all_of} weights: trtexec "
            f"--onnx={shlex.quote(str(path))} --sparsity=enable"
        )
    else:
        say("TensorRT has sparse kernels for 2:4 alone, and whatever is sparser: none fits here")
