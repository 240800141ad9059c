"""Run folders as the runner writes them, with made-up numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nmstep

LAYERS = ("conv2.weight", "fc1.weight")
STEPS = 100
SWITCH = 40


def plan_of(pattern: str, layers: tuple[str, ...] = LAYERS) -> nmstep.SparsityPlan:
    entries = [
        nmstep.PlanEntry(name="conv1.weight", shape=(32, 1, 3, 3), kind="Conv2d", reason="1 input channel"),
        *(
            nmstep.PlanEntry(
                name=name,
                shape=(32, 64),
                kind="Linear",
                pattern=nmstep.NMPattern.parse(pattern),
                dim=1,
                reason="default",
            )
            for name in layers
        ),
    ]
    return nmstep.SparsityPlan(tuple(entries))


def _lines(
    recipe: str, seed: int, metric: str, final: float, steps: int, layers: tuple[str, ...]
) -> list[dict[str, Any]]:
    switch = {"step": SWITCH, "dense": None}.get(recipe, 0)
    lines: list[dict[str, Any]] = []
    means: list[float] = []
    for step in range(1, steps + 1):
        sparse = switch is not None and step > switch
        z = 1e-6 / step * (1 + 0.3 * math.sin(step + seed))
        means.append(z)
        watched = recipe == "step" and not sparse
        lines.append(
            {
                "kind": "step",
                "step": step,
                "phase": "sparse" if sparse else "dense",
                "lr": 1e-3,
                "loss": 2.3 / step,
                "v_norm1": 0.1 * step * (1 + 0.1 * seed),
                "v_norm2": 0.01 * step,
                "z": z if watched else None,
                "z_mean": sum(means) / len(means) if watched else None,
                "z_geometric": None,
                "threshold": 1e-7 if recipe == "step" else None,
            }
        )
        if recipe == "step" and step == switch:
            lines.append({"kind": "switch", "step": step, "reason": "t_max"})
        if step % 10 == 0:
            value = final - 20 * (1 - step / STEPS)
            masked = recipe == "step" and not sparse
            scores = {"loss": 1 / (1 + abs(value)), metric: value + (30 if masked else 0)}
            lines.append(
                {
                    "kind": "eval",
                    "step": step,
                    "phase": "sparse" if sparse else "dense",
                    **scores,
                    "masked": {"loss": 2.0, metric: value} if masked else None,
                }
            )
        if sparse and step % 20 == 0:
            lines += [
                {
                    "kind": "layers",
                    "step": step,
                    "name": name,
                    "flip_rate": None if recipe == "asp" else 0.1 / (step + place),
                    "density": 0.25,
                    "kept_norm": 3.0,
                    "pruned_norm": 1.0,
                }
                for place, name in enumerate(layers)
            ]
    return lines


def write_run(
    root: Path,
    recipe: str,
    pattern: str | None,
    seed: int,
    final: float,
    *,
    loss: float = 0.1,
    task: str = "digits",
    metric: str = "accuracy",
    finished: bool = True,
    verified: bool | None = True,
    steps: int = STEPS,
    layers: tuple[str, ...] = LAYERS,
    command: str = "nmstep compare --task digits",
    **settings: Any,
) -> Path:
    """Writes a run folder below ``root`` and returns it."""
    parts = [recipe, *([pattern.replace(":", "x")] if pattern else []), f"s{seed}"]
    folder = root / "-".join([*parts, *(str(value).replace("/", "_") for value in settings.values())])
    folder.mkdir(parents=True)
    config = {
        "task": task,
        "data": None,
        "task_options": {},
        "recipe": recipe,
        "pattern": pattern,
        "seed": seed,
        "steps": STEPS,
        "batch_size": 64,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "options": {},
        **settings,
    }
    environment = {
        "python": "3.11.2",
        "torch": "2.13.0",
        "nmstep": "0.1.0",
        "platform": "Linux",
        "cpu": "Some <CPU> & Co",
        "threads": 1,
        "commit": "abc123",
        "command": command,
        "started": f"2026-01-0{seed + 1}T00:00:00+00:00",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps(environment))
    if pattern:
        (folder / "plan.json").write_text(json.dumps(plan_of(pattern, layers).to_dict()))
    lines = _lines(recipe, seed, metric, final, steps, layers)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        result = {
            "metric": metric,
            "higher_is_better": metric == "accuracy",
            "final": {"loss": loss, metric: final},
            "best": {"loss": loss, metric: final},
            "steps": STEPS,
            "switch_step": {"dense": None, "step": SWITCH}.get(recipe, 0),
            "switch_reason": {"dense": None, "step": "t_max"}.get(recipe, "scheduled"),
            "phase": "dense" if recipe == "dense" else "sparse",
            "verified": None if recipe == "dense" else verified,
            "density": 1.0 if recipe == "dense" else 0.27,
            "seconds": 2.0,
            "step_ms": 20.0,
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes one run below ``tmp_path / "runs"``."""
    return lambda *args, **settings: write_run(tmp_path / "runs", *args, **settings)


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense, ASP, SR-STE and STEP at 1:4 and 1:16, two seeds each; to be read only."""
    root = tmp_path_factory.mktemp("comparison") / "runs"
    for seed in (0, 1):
        write_run(root, "dense", None, seed, 98.0 + seed, loss=0.05)
        for pattern in ("1:16", "1:4"):
            write_run(root, "step", pattern, seed, 97.5 + seed, loss=0.06)
            write_run(root, "asp", pattern, seed, 95.0 + seed, loss=0.2)
            write_run(root, "sr-ste", pattern, seed, 96.0 + seed, loss=0.1 + 0.02 * seed)
    return root
