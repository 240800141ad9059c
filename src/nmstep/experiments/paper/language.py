"""Language workloads: GLUE, WikiText and masked-language-model pretraining."""

from __future__ import annotations

from typing import Any

from nmstep.experiments.config import RunConfig
from nmstep.experiments.options import RecipeOptions
from nmstep.experiments.paper.study import run_name
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = ["glue", "masked_language_model", "wikitext"]

_TITLES = {
    "rte": "RTE",
    "mrpc": "MRPC",
    "sts-b": "STS-B",
    "cola": "CoLA",
    "sst-2": "SST-2",
    "qnli": "QNLI",
    "qqp": "QQP",
    "mnli-m": "MNLI-m",
    "mnli-mm": "MNLI-mm",
}
# Three epochs of batches of 32, BERT's own recipe: five to seven minutes of one core each. Sparse encoders are far
# from done after one or two.
_CPU_STEPS = {"rte": 234, "mrpc": 345, "sts-b": 540, "cola": 804}
_SMALL_GPT: dict[str, Any] = {
    "model": "config",
    "layers": 4,
    "width": 192,
    "heads": 4,
    "context": 128,
    "vocabulary": 4096,
}
# 1 / (1 - beta2) = 1,000 steps of window do not fit into runs this short; see docs/results/digits.md.
_SHORT = {"step": RecipeOptions(window=50)}


def glue(scope: Scope) -> tuple[Workload, ...]:
    """Returns the tasks of GLUE: all nine with BERT-Base, or four with a 6-layer encoder on two cores."""
    return tuple(_glue(scope, task) for task in (_CPU_STEPS if scope.scale == "cpu" else _TITLES))


def _glue(scope: Scope, task: str) -> Workload:
    settings: dict[str, Any] = {
        "task": f"glue/{task}",
        "data": scope.place("glue", "nyu-mll/glue"),
        "device": scope.device,
        "precision": "bf16",
    }
    if scope.scale == "cpu":
        steps = _CPU_STEPS[task]
        settings |= {
            "task_options": {"model": "minilm"},
            "steps": steps,
            "lr": 1e-4,
            "schedule": "linear",
            "warmup": steps // 10,
            "eval_every": -(-steps // 3),
            "checkpoint_every": -(-steps // 2),
            "threads": 1,
        }
    return Workload(
        name=f"glue/{task}",
        title=_TITLES[task],
        settings=settings,
        seeds=scope.seeds or tuple(range(3 if scope.scale == "cpu" else 10)),
        summary="mean" if scope.scale == "cpu" else "median",
    )


def wikitext(scope: Scope) -> tuple[tuple[Workload, RunConfig | None], ...]:
    """Returns each WikiText with the dense run whose weights it starts from, or None for GPT-2's own."""
    if scope.scale == "cpu":
        return (_small_gpt(scope),)
    return tuple(
        (
            Workload(
                name=f"wikitext-{size}",
                title=f"WikiText-{size}",
                settings={
                    "task": f"wikitext-{size}",
                    "data": scope.place(f"wikitext-{size}-raw", "Salesforce/wikitext"),
                    "device": scope.device,
                    "precision": "bf16",
                },
                seeds=scope.seeds or tuple(range(10)),
            ),
            None,
        )
        for size in (2, 103)
    )


def _small_gpt(scope: Scope) -> tuple[Workload, RunConfig]:
    """Returns the fine-tuning of a small GPT, and its pretraining on other text and WikiText-2 itself."""
    text = None if scope.data is None else str(scope.data / "text")
    settings: dict[str, Any] = {
        "task": "wikitext-2",
        "data": scope.place("wikitext-2-raw", "Salesforce/wikitext"),
        "device": scope.device,
        "precision": "bf16",
        "batch_size": 8,
        "schedule": "cosine",
        "clip_norm": 1.0,
        "threads": 1,
    }
    pretraining = RunConfig(
        **settings,
        recipe="dense",
        task_options={**_SMALL_GPT, "train_text": text, "tokenizer_text": text},
        steps=4000,
        lr=2e-3,
        warmup=200,
        eval_every=1000,
        checkpoint_every=500,
    )
    fine_tuning: dict[str, Any] = {
        "task_options": {**_SMALL_GPT, "tokenizer_text": text},
        "init": scope.file(run_name(pretraining)),
        "steps": 600,
        "lr": 5e-4,
        "warmup": 30,
        "eval_every": 300,
        "checkpoint_every": 300,
    }
    workload = Workload(
        name="wikitext-2",
        title="WikiText-2",
        settings=settings | fine_tuning,
        seeds=scope.seeds or (0, 1, 2),
        options=_SHORT,
    )
    return workload, pretraining


def masked_language_model(scope: Scope) -> tuple[Workload, ...]:
    """Returns the pretraining of a BERT-Large, or of a small BERT on two cores."""
    settings: dict[str, Any] = {"task": "mlm", "device": scope.device, "precision": "bf16"}
    if scope.scale == "cpu":
        text = None if scope.data is None else str(scope.data / "text")
        settings |= {"data": text, "steps": 1200, "eval_every": 600, "checkpoint_every": 300, "threads": 1}
    else:
        settings |= {
            "data": scope.place("text", "Salesforce/wikitext"),
            "task_options": {"model": "bert-large"},
        }
    return (
        Workload(
            name="mlm",
            title="BERT pretraining" if scope.scale == "cpu" else "BERT-Large pretraining",
            settings=settings,
            seeds=scope.seeds or ((0,) if scope.scale == "cpu" else (0, 1, 2, 3, 4)),
        ),
    )
