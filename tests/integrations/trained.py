"""A short run of transformers' Trainer on the tiny classifier of the other tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

import integrated
from nmstep.integrations.transformers import SparsityCallback, optimizer_for


def arguments(folder: Path, **settings: Any) -> Any:
    chosen = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "save_steps": 4,
        "logging_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return transformers.TrainingArguments(**{**chosen, **settings})


def trainer(
    folder: Path, *, switch: int = 5, pattern: str = "2:4", recipe: Any = None, **settings: Any
) -> tuple[Any, SparsityCallback]:
    callback = settings.pop("callback", None) or SparsityCallback()
    classes = settings.pop("classes", {})
    model = settings.pop("model", None) or integrated.tiny_bert()
    args = arguments(folder, **settings)
    recipe = recipe or integrated.recipe(model, switch=switch, pattern=pattern)
    made = transformers.Trainer(
        model,
        args,
        train_dataset=integrated.examples(),
        eval_dataset=integrated.examples(16),
        optimizer_cls_and_kwargs=optimizer_for(args, recipe, **classes),
        callbacks=[callback],
    )
    return made, callback


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nm_trace.jsonl").read_text().splitlines()]
