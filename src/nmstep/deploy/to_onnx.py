"""Exports to ONNX: the dense graph with the zeros in its weights, checked against torch in onnxruntime."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmstep.deploy.exporting import Exported, dense_model
from nmstep.deploy.onnx_inputs import Inputs
from nmstep.deploy.onnx_run import open_session, outputs_apart
from nmstep.deploy.onnx_weights import place_weights
from nmstep.deploy.packing import replaced
from nmstep.files import cannot_save, settle
from nmstep.packages import require
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import SparsityPlan
from nmstep.verify import verify
from nmstep.verify.stored import NM_SPARSITY

__all__ = ["ExportedOnnx", "export_onnx"]

_COLOUR = re.compile(r"\x1b\[\d*m")


@dataclass(frozen=True)
class ExportedOnnx(Exported):
    """What was written, read back, and run.

    Args:
        difference: largest difference between an output of onnxruntime and torch's, over its largest value.
        inputs: of the graph, by name, with their shapes; ``"batch"`` stands for any size.
    """

    difference: float
    inputs: dict[str, tuple[int | str, ...]]


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    pattern: str | NMPattern | None = None,
    plan: SparsityPlan | None = None,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
) -> ExportedOnnx:
    """Writes an N:M model as an ONNX file with dense weights, zeros included, once it is verified and agrees.

    The file's metadata has the plan under ``"nm_sparsity"``, in the graph's own names and dimensions: a weight that
    the exporter turned is ``"fc.weight.T"`` there. :func:`nmstep.verify` goes by it. The model is exported as it is
    in evaluation mode, without the cache that transformers' decoders return; weights in bfloat16 are written as
    float32, which changes no value, since onnxruntime does not multiply in bfloat16 on a CPU. A file that was there
    is replaced at the end.

    Args:
        model: packed or not; is not changed.
        inputs: examples of what its forward takes, with the batch first: by position, or a dict by name, as
            tokenizers return. The graph's inputs have the forward's names.
        path: ends in ``.onnx``. A model above 2 GB gets a file of weights beside it.
        kwargs: more examples, of what its forward takes by name.
        pattern: N kept of M; without pattern and plan, zeros show what each layer has.
        plan: a pattern for each layer.
        dynamic_batch: whether the file takes batches of any size; outputs are then compared at several.
        tolerance: on the difference of outputs, as ``ExportedOnnx.difference`` has it; 0.0001 by default,
            and 0.01 with weights in float16.

    Raises:
        NotSparseError: a weight is not N:M; the message names its first group that is not.
        ValueError: the exporter cannot do it, with its reason; a sparse weight is not in the graph; onnxruntime
            does not run it; outputs differ; or the arguments do not fit the model. Nothing is written.
        OSError: the file cannot be written.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "exports to ONNX")
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"a model is exported to an .onnx file, not to {str(path)!r}")
    dense, plan = dense_model(model, pattern, plan)
    dense = _prepared(dense)
    call = Inputs.of(dense, inputs, kwargs)
    call = call.with_batch(max(2, call.batch)) if dynamic_batch else call
    dense(
        *call.args, **call.kwargs
    )  # what is wrong with the inputs is better said by the model than by an exporter
    with _beside(path) as file:
        plan = _write(dense, call, plan, file, dynamic_batch)
        report = verify(file)
        report.raise_if_failed()
        session = open_session(file)
        sizes = sorted({1, call.batch, call.batch + 1}) if dynamic_batch else [call.batch]
        shapes = {item.name: tuple(item.shape) for item in session.get_inputs()}
        if dynamic_batch:
            _check_dynamic(shapes, call)
        worst = max(outputs_apart(session, dense, call.with_batch(size)) for size in sizes)
        del session
        _check_close(worst, _usual_tolerance(dense) if tolerance is None else tolerance)
        size = sum(part.stat().st_size for part in file.parent.iterdir())
    return ExportedOnnx(path, size, plan, replace(report, target=str(path)), worst, shapes)


def _check_dynamic(shapes: Mapping[str, tuple[int | str, ...]], call: Inputs) -> None:
    fixed = [name for name in call.batched if name in shapes and isinstance(shapes[name][0], int)]
    if fixed:
        raise ValueError(
            f"the exporter fixed the batch of {', '.join(map(repr, fixed))} at {call.batch}, since the model's "
            f"code makes a number of it; with dynamic_batch=False it need not vary"
        )


def _usual_tolerance(model: nn.Module) -> float:
    return 1e-2 if any(p.dtype == torch.float16 for p in model.parameters()) else 1e-4


def _check_close(worst: float, tolerance: float) -> None:
    if not worst <= tolerance:
        raise ValueError(
            f"outputs of onnxruntime differ from torch's by {worst:.2g} of their largest value, and tolerance is "
            f"{tolerance:g}: is the model random, or sensitive to rounding?"
        )


def _prepared(model: nn.Module) -> nn.Module:
    """Returns a copy for export, which shares what need not be another."""

    def unchanged(name: str, module: nn.Module) -> nn.Module:
        raise AssertionError(name, module)

    model = replaced(model, (), unchanged).eval().requires_grad_(False).cpu()
    config: Any = getattr(model, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False
    narrow = any(t.dtype == torch.bfloat16 for t in (*model.parameters(), *model.buffers()))
    return model.float() if narrow else model


def _write(model: nn.Module, call: Inputs, plan: SparsityPlan, file: Path, dynamic: bool) -> SparsityPlan:
    """Writes a graph and returns the plan in its names."""
    # The exporter's optimizer makes a smaller graph, but may take a weight apart; without it all keep their names.
    for optimize in (True, False):
        program = _exported(model, call, dynamic, optimize)
        placed = place_weights(program.model.graph.initializers, model, plan)
        if not placed.missing:
            break
    else:
        raise ValueError(
            f"{', '.join(map(repr, placed.missing[:5]))} is in no part of the graph that could be told, so that it "
            f"cannot be promised to be N:M: the model does not use it, or changes it; leave it out of the plan"
        )
    program.model.metadata_props[NM_SPARSITY] = json.dumps(placed.plan.to_dict())
    program.save(file)
    return placed.plan


def _exported(model: nn.Module, call: Inputs, dynamic: bool, optimize: bool) -> Any:
    shapes: dict[str, Any] | None = None
    if dynamic:
        batch, batched = torch.export.Dim("batch"), call.batched
        shapes = {name: {0: batch} if name in batched else None for name in call.names}
    try:
        with _quiet():
            return torch.onnx.export(
                model,
                call.args,
                kwargs=dict(call.kwargs),
                dynamic_shapes=shapes,
                output_names=_output_names(model(*call.args, **call.kwargs)),
                optimize=optimize,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # tracing runs the model's code, which raises anything
        raise ValueError(
            f"this {type(model).__name__} cannot be exported to ONNX: {_reason(error)}"
        ) from error


def _output_names(outputs: Any) -> list[str] | None:
    """Returns names where the model gives one tensor or has names itself; the exporter's own otherwise."""
    if isinstance(outputs, Tensor):
        return ["output"]
    named = isinstance(outputs, Mapping) and all(isinstance(value, Tensor) for value in outputs.values())
    return [str(name) for name in outputs] if named else None


def _reason(error: BaseException) -> str:
    """Returns what the exporter found first, without its advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the exporter notes about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Gives a file to write, which is put in its place with those beside it, itself last."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise cannot_save(error, path) from error
    with folder as name:
        yield Path(name) / path.name
        settle(Path(name))
        files = sorted(Path(name).iterdir(), key=lambda file: file.name == path.name)
        for file in files:
            file.replace(path.parent / file.name)
        weights = path.with_name(f"{path.name}.data")  # of a larger model that was there
        if weights.name not in [file.name for file in files]:
            weights.unlink(missing_ok=True)
