"""Saving on two ranks, of which only the first one writes: what each of them is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ranked
import torch.distributed as dist
from refused import told
from safetensors.torch import save_file
from torch import nn

import nmstep
from nmstep.integrations import accelerate


class Prepared:
    """What :func:`nmstep.integrations.accelerate.save` asks of an ``Accelerator``."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state, self.is_main_process = state, dist.get_rank() == 0

    def unwrap_model(self, model: nn.Module, **settings: Any) -> nn.Module:
        return getattr(model, "module", model)

    def get_state_dict(self, model: nn.Module) -> dict[str, Any]:
        return self.state


class Full:
    """A tracker on a disk without room."""

    def start(self, settings: Any, *, step: int) -> None:
        pass

    def log(self, step: int, values: Any) -> None:
        raise OSError(28, "No space left on device")

    def finish(self) -> None:
        pass


def everything(folder: Path) -> dict[str, Any]:
    """Returns what this rank was told in each case."""
    return {case.__name__: case(folder / case.__name__) for case in CASES}


def made() -> tuple[nn.Module, nmstep.Sparsifier]:
    model = ranked.ddp(ranked.net())
    optimizer = nmstep.AdamW(model.parameters())
    sparsifier = nmstep.sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    model(ranked.batch(0)[0]).sum().backward()
    optimizer.step()
    return model, sparsifier


def written_to() -> tuple[nn.Module, nmstep.Sparsifier, dict[str, Any]]:
    """A state that is not N:M on the rank that writes."""
    model, sparsifier = made()
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    if dist.get_rank() == 0:
        state["2.weight"].fill_(1.0)
    return model, sparsifier, state


def not_sparse(folder: Path) -> str:
    model, sparsifier, state = written_to()
    return told(lambda: accelerate.save(Prepared(state), model, sparsifier, folder))


def a_file_is_there(folder: Path) -> str:
    model, sparsifier = made()
    if dist.get_rank() == 0:
        folder.write_text("")
    return told(lambda: accelerate.save(Prepared(model.module.state_dict()), model, sparsifier, folder))


def in_shards(folder: Path) -> dict[str, Any]:
    """A model that Accelerate did not cut itself, so that its state comes in shards."""
    case = ranked.CASES["fsdp"]
    model, optimizer, sparsifier = ranked.make(case)
    ranked.train(case, model, optimizer, 0, ranked.STEPS)
    marked = accelerate.save(Prepared(model.state_dict()), model, sparsifier, folder)
    whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
    return {"marked": marked, "whole": whole}


def trainer(folder: Path, *trackers: Any) -> tuple[Any, Any, dict[str, Any], nn.Module]:
    """The callback as a Trainer begins: itself, its optimizer, what its methods are called with, the model."""
    from nmstep.integrations.transformers import SparsityCallback

    model, sparsifier = made()
    callback = SparsityCallback(trackers=trackers)
    given = {
        "args": SimpleNamespace(output_dir=str(folder), world_size=2),
        "state": SimpleNamespace(is_world_process_zero=dist.get_rank() == 0, global_step=1),
        "control": None,
    }
    callback.on_train_begin(**given, model=model, optimizer=sparsifier._optimizer)
    return callback, sparsifier._optimizer, given, model


def a_trainers_checkpoint(folder: Path) -> str:
    callback, _, given, model = trainer(folder)
    place = folder / "checkpoint-1"
    if dist.get_rank() == 0:
        place.mkdir()
        state = {name: value.clone() for name, value in model.module.state_dict().items()}
        state["2.weight"].fill_(1.0)
        save_file(state, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"nm_sparsity": callback.sparsifier.plan.to_dict()}))
    said = told(lambda: callback.on_save(**given))
    if dist.get_rank() == 0:
        assert "nm_sparsity" not in (place / "config.json").read_text()
    return said


def no_room_for_a_trainers_trace(folder: Path) -> str:
    callback, optimizer, given, model = trainer(folder, Full())
    model(ranked.batch(1)[0]).sum().backward()
    optimizer.step()
    callback.on_log(**given)  # not here: others need not come
    return told(lambda: callback.on_save(**given))


def no_folder_for_a_trainers_trace(folder: Path) -> str:
    if dist.get_rank() == 0:
        folder.write_text("")
    return told(lambda: trainer(folder))


def lightnings_checkpoint(folder: Path) -> str:
    from nmstep.integrations.lightning import SparsityCallback

    del folder
    model, sparsifier, state = written_to()
    callback = SparsityCallback()
    callback.sparsifier = sparsifier
    there = SimpleNamespace(is_global_zero=dist.get_rank() == 0)
    checkpoint = {"state_dict": state if dist.get_rank() == 0 else {}}  # as strategies that gather it give it
    return told(lambda: callback.on_save_checkpoint(there, model, checkpoint))


CASES = [
    not_sparse,
    a_file_is_there,
    in_shards,
    a_trainers_checkpoint,
    no_room_for_a_trainers_trace,
    no_folder_for_a_trainers_trace,
    lightnings_checkpoint,
]
