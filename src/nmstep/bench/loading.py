"""Models to measure: of run folders, of transformers folders, of packed files beside either, or of a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nmstep.bench.inputs import Given, given_to
from nmstep.bench.sizes import SIZES, sized_subject
from nmstep.bench.subject import Subject, Use
from nmstep.deploy import load_packed, pack, unpack
from nmstep.deploy.finding import verified_plan
from nmstep.experiments import RunConfig, load_task
from nmstep.experiments.weights import load_weights
from nmstep.files import read_json
from nmstep.names import did_you_mean
from nmstep.packages import require
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import SparsityPlan
from nmstep.tasks import Task
from nmstep.tasks.quiet import quiet_transformers
from nmstep.verify.files import open_path

__all__ = ["found_plan", "is_of_transformers", "load_subject"]

_PACKED = (".safetensors", ".safetensors.index.json")


def load_subject(
    path: Path, *, pattern: str | None = None, tokens: int | None = None, dtype: torch.dtype | None = None
) -> Subject:
    """Returns a model, dense and packed, and how it is used.

    Args:
        path: run folder, transformers folder, packed file beside the configuration of either, or one of
            ``bert-base``, ``gpt2`` and ``resnet18``, for random weights.
        pattern: N kept of M, for random weights only; 2:4 by default.
        tokens: as :func:`~nmstep.bench.inputs.given_to` takes them.
        dtype: to hold kept weights in; their own by default.

    Raises:
        FileNotFoundError: there is no such path, or no configuration in it.
        ValueError: the model is dense, is of no class that transformers has, or cannot be used with inputs that are
            made up; or an argument does not fit the path.
        ImportError: the model needs transformers, which is not installed.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"--tokens {tokens}: expected at least 1")
    if not path.exists():
        if str(path) not in SIZES:
            raise FileNotFoundError(f"there is no {str(path)!r}: {did_you_mean(str(path), SIZES)}")
        return sized_subject(str(path), pattern or "2:4", tokens=tokens, dtype=dtype)
    if pattern is not None:
        raise ValueError(
            f"--pattern is for models of a size ({', '.join(SIZES)}): what {str(path)!r} holds has its own patterns"
        )
    folder, file = (path, None) if path.is_dir() else (path.parent, path)
    if not (folder / "config.json").is_file() or (file is not None and not file.name.endswith(_PACKED)):
        raise FileNotFoundError(
            f"nothing to measure at {str(path)!r}: expected a folder with a config.json, as run folders and "
            f"transformers folders have, a packed .safetensors file or index beside one, or {', '.join(SIZES)}"
        )
    if file is not None and dtype is not None:
        raise ValueError(f"--dtype: the kept weights in {str(file)!r} have theirs already")
    subject = _subject(_source(folder, tokens), folder, file, dtype)
    _try(subject)
    return subject


def is_of_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of transformers."""
    return "model_type" in config or "architectures" in config


def found_plan(folder: Path) -> SparsityPlan:
    """Returns what the model in a folder of transformers is, by its one pattern or else by its zeros.

    Raises:
        NotSparseError: a layer does not have the pattern that the folder says.
        ValueError: no layer is sparse, or the model is of no class that transformers has.
        ImportError: transformers is not installed.
    """
    return _plan(_of_transformers(folder, None).load(), open_path(folder).promise, folder)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a model comes from.

    Args:
        new: returns it with any weights.
        load: returns it with those of the folder.
        given: says how it is used.
    """

    new: Callable[[], nn.Module]
    load: Callable[[], nn.Module]
    given: Callable[[nn.Module], Given]


def _source(folder: Path, tokens: int | None) -> _Source:
    values = read_json(folder / "config.json")
    if is_of_transformers(values):
        return _of_transformers(folder, tokens)
    return _of_run(folder, tokens)


def _subject(source: _Source, folder: Path, file: Path | None, dtype: torch.dtype | None) -> Subject:
    if file is not None:
        packed = load_packed(file, source.new().float()).eval().requires_grad_(False)
        dense = unpack(packed)
    else:
        promise = open_path(folder).promise
        dense = source.load().eval().requires_grad_(False)
        dtype = dtype or _narrow(dense)
        dense = dense.float()
        packed = pack(dense, plan=_plan(dense, promise, folder), dtype=dtype)
    use, what, decoded = source.given(dense)
    name = str(file or folder)
    return Subject(name=name, dense=dense, packed=packed, use=use, what=what, decoded=decoded, file=file)


def _plan(dense: nn.Module, promise: SparsityPlan | NMPattern | None, folder: Path) -> SparsityPlan:
    """Returns the plan that the model's folder says, or its zeros show."""
    if isinstance(promise, SparsityPlan):
        return promise
    if isinstance(promise, NMPattern):
        return verified_plan(dense, promise)
    try:
        return verified_plan(dense)
    except ValueError as error:
        raise ValueError(
            f"the model in {str(folder)!r} is dense, there is nothing to pack: {error}"
        ) from error


def _narrow(model: nn.Module) -> torch.dtype | None:
    """Returns bfloat16 for weights that are held in it, else None."""
    held = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return torch.bfloat16 if held == {torch.bfloat16} else None


def _of_run(folder: Path, tokens: int | None) -> _Source:
    task = load_task(RunConfig.load(str(folder / "config.json")))

    def load() -> nn.Module:
        model = task.model()
        load_weights(model, folder)
        return model

    def given(model: nn.Module) -> Given:
        if getattr(model, "can_generate", bool)():
            return given_to(model, tokens)
        if tokens is not None:
            raise ValueError(f"--tokens: examples of task {task.name!r} have their own length")
        return lambda count: _batch(task, count), f"one of task {task.name!r}", None

    return _Source(new=task.model, load=load, given=given)


def _batch(task: Task, count: int) -> Use:
    batch = task.batch(0, seed=0, batch_size=count)
    return Use(positional=(batch.inputs,), named=batch.extras)


def _of_transformers(folder: Path, tokens: int | None) -> _Source:
    transformers = require("transformers", "a folder of transformers")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet_transformers(transformers):
        config = transformers.AutoConfig.from_pretrained(folder, **local)
    named = (config.architectures or ["AutoModel"])[0]
    kind: Any = getattr(transformers, named, None)
    models = (transformers.PreTrainedModel, transformers.AutoModel)
    is_model = isinstance(kind, type) and issubclass(kind, models)
    if not is_model:  # its code would have to come from the folder, and nothing there is executed
        raise ValueError(f"{str(folder)!r} is of class {named!r}, which is no model of transformers")

    def load() -> nn.Module:
        with quiet_transformers(transformers):
            model: nn.Module = kind.from_pretrained(folder, dtype="auto", **local)
        return model

    def new() -> nn.Module:
        model: nn.Module = kind.from_config(config) if named == "AutoModel" else kind(config)
        return model

    return _Source(new=new, load=load, given=lambda model: given_to(model, tokens))


@torch.inference_mode()
def _try(subject: Subject) -> None:
    """Uses the packed model once, so that inputs it does not take are found before anything is measured."""
    try:
        subject.use(1)(subject.packed)
    except Exception as error:  # the model is anybody's, and raises anything
        raise ValueError(
            f"{subject.name!r} cannot be used with inputs made up for it ({subject.what}): "
            f"{type(error).__name__}: {error}"
        ) from error
