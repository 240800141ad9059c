"""What the tests start with ``accelerate launch``: a loop of one's own and the Trainer, on all processes.

Called with a folder; each process writes what it ends with there. With ``--use_fsdp`` models are cut by FSDP2.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parent))

import integrated
import nmstep
from nmstep.integrations.accelerate import load_state, prepare, save
from nmstep.integrations.transformers import SparsityCallback, optimizer_for


def run(folder: Path, batch_size: int) -> dict[str, Any]:
    """Trains twice on what one process would take as batches of 8, and returns what it ends with."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        use_fsdp2()
    accelerator = Accelerator(cpu=True)
    ended = {
        "loop": loop(accelerator, folder / "loop", batch_size),
        "resumed": loop(accelerator, folder / "loop", batch_size, resume=True),
    }
    ended["trainer"] = trainer(folder / "trainer", batch_size)  # which makes an accelerator of its own
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
        ended["sharded"] = trainer(folder / "sharded", batch_size)
        accelerator = Accelerator(cpu=True)
        loop(accelerator, folder / "parts", batch_size)
        ended["resumed from parts"] = loop(accelerator, folder / "parts", batch_size, resume=True)
    return ended


def use_fsdp2() -> None:
    """Makes Accelerate do what it was launched for: on CPUs it reads FSDP's settings and runs DDP all the same."""
    init = AcceleratorState.__init__

    def on_cpus_too(self: Any, *args: Any, **settings: Any) -> None:
        init(self, *args, **settings)
        if settings.get("fsdp_plugin") is not None:
            self.fsdp_plugin = settings["fsdp_plugin"]
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = on_cpus_too


def loop(accelerator: Any, folder: Path, batch_size: int, *, resume: bool = False) -> dict[str, Any]:
    """A loop of one's own, with a switch that reads the variance; saves after one epoch, or goes on from there."""
    accelerator.free_memory()
    model = integrated.tiny_bert()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-3)
    plan = nmstep.plan(model, "2:4", include=["bert.encoder"])
    switch = nmstep.AutoSwitch(window=3, threshold=1e-6, clip=(0.1, 0.9))
    recipe = nmstep.STEP(plan, total_steps=20, switch=switch)
    loader = torch.utils.data.DataLoader(integrated.examples(), batch_size=batch_size)
    sparsifier, model, optimizer, loader = prepare(accelerator, model, optimizer, loader, recipe=recipe)
    if resume:
        load_state(accelerator, model, optimizer, folder / "state")
    for epoch in range(int(resume), 2):
        if epoch == 1 and not resume:
            accelerator.save_state(str(folder / "state"))
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    marked = save(accelerator, model, sparsifier, folder)
    return {**end(accelerator.unwrap_model(model), sparsifier), "marked": marked}


def trainer(folder: Path, batch_size: int) -> dict[str, Any]:
    """transformers' Trainer."""
    transformers.utils.logging.disable_progress_bar()
    model = integrated.tiny_bert()
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=8,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        save_steps=8,
        train_sampling_strategy="sequential",
        average_tokens_across_devices=False,  # it would double the loss of two processes
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = SparsityCallback()
    made = transformers.Trainer(
        model,
        args,
        train_dataset=integrated.examples(),
        optimizer_cls_and_kwargs=optimizer_for(args, integrated.recipe(model)),
        callbacks=[callback],
    )
    made.train()
    assert callback.sparsifier is not None
    return end(model, callback.sparsifier)


def end(model: torch.nn.Module, sparsifier: nmstep.Sparsifier) -> dict[str, Any]:
    """What can be compared between processes."""
    weights = {name: whole(p).detach().clone() for name, p in model.named_parameters()}
    cut = any(isinstance(p, DTensor) for p in model.parameters())
    return {"weights": weights, "cut": cut, "switch_step": sparsifier.switch_step, "step": sparsifier.step}


def whole(p: torch.Tensor) -> torch.Tensor:
    """Returns a parameter put together."""
    return p.full_tensor() if isinstance(p, DTensor) else p


if __name__ == "__main__":
    ended = run(Path(sys.argv[1]), int(sys.argv[2]))
    torch.save(ended, Path(sys.argv[1]) / f"rank{os.environ['RANK']}.pt")
