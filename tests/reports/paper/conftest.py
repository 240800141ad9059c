"""Study folders as `nmstep reproduce` writes them, with made-up numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PLACE = {
    "python": "3.11.2",
    "torch": "2.13.0",
    "cpu": "Some CPU",
    "threads": 1,
    "commit": "0123456789abcdef",
    "command": "nmstep reproduce fig4 --seeds 0 1 2",
}


class StudyFolder:
    """A study that is put together cell by cell; ``save`` writes its ``study.json``."""

    def __init__(self, root: Path, name: str, view: str, **facts: Any) -> None:
        self.path, self.store = root / name, root / "runs"
        self.path.mkdir()
        self.store.mkdir(exist_ok=True)
        self.values: dict[str, Any] = {
            "name": name,
            "title": "A title",
            "claim": "STEP is better.",
            "view": view,
            "facts": facts,
            "notes": ["A note."],
            "cells": [],
            "files": [],
            "starts": [],
            "scale": "cpu",
            "environment": PLACE,
        }

    def cell(
        self,
        row: str,
        recipe: str,
        values: Sequence[float | None],
        *,
        losses: Sequence[float] | None = None,
        column: str = "Digits, 1:8",
        planned: int | None = None,
        task: str = "digits",
        metric: str = "accuracy",
        switch: int | None = None,
        reason: str | None = None,
        lines: Callable[[int], list[dict[str, Any]]] | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Adds a cell, and a finished run for each value; one that has begun for None."""
        seeds = list(range(planned or len(values)))
        stem = f"{column}-{row}".replace(" ", "_").replace(":", "x").replace(",", "").replace("%", "pc")
        names = [f"{stem}-s{seed}" for seed in seeds]
        cell = {"row": row, "column": column, "task": task, "recipe": recipe, "paper": None, "x": None}
        pattern = None if recipe == "dense" else "1:8"
        self.values["cells"].append(
            {**cell, "summary": "mean", "pattern": pattern, "seeds": seeds, "runs": names, **more}
        )
        for seed, value in enumerate(values):
            folder = self.store / names[seed]
            folder.mkdir()
            config = {
                "task": task,
                "recipe": recipe,
                "pattern": pattern,
                "seed": seed,
                "steps": 100,
                "batch_size": 32,
                "lr": 0.001,
                "betas": [0.9, 0.999],
                "data": "/somewhere/on/this/machine/pictures",
                **(settings or {}),
            }
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "environment.json").write_text(json.dumps(PLACE))
            records = lines(seed) if lines else []
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
            if value is not None:
                loss = 0.1 if losses is None else losses[seed]
                result = {
                    "metric": metric,
                    "higher_is_better": metric not in ("perplexity", "loss"),
                    "final": {"loss": loss, metric: value},
                    "steps": 100,
                    "switch_step": switch,
                    "switch_reason": reason,
                    "seconds": 20.0,
                    "cpu_seconds": 12.0,
                    "peak_memory_mb": 300.0 + seed,
                }
                (folder / "result.json").write_text(json.dumps(result))

    def save(self) -> Path:
        (self.path / "study.json").write_text(json.dumps(self.values))
        return self.path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., StudyFolder]:
    """Begins a study below ``tmp_path``."""
    return lambda name="fig4", view="scores", **facts: StudyFolder(tmp_path, name, view, **facts)
