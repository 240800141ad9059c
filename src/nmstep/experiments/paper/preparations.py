"""What a study needs besides runs: layer-wise plans, and the measured drift of a variance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmstep.experiments.paper.study import Drift, LayerSearch, run_name
from nmstep.experiments.training import Training, load_task, surroundings
from nmstep.experiments.weights import load_weights
from nmstep.files import write_json
from nmstep.recipes.layerwise import dominosearch

__all__ = ["measure_drift", "search_layers"]


def search_layers(search: LayerSearch, store: Path) -> Path:
    """Returns the file of a layer-wise plan, searched for from a finished dense run unless it is there.

    Args:
        search: which dense run, and what to look for.
        store: folder of all runs.

    Raises:
        FileNotFoundError: the dense run is not finished.
        TargetNotReachedError: the search ran out of steps.
    """
    path = store / search.file
    if path.exists():
        return path
    task = load_task(search.config)
    config = search.config.resolve(task.defaults)
    assert config.batch_size is not None
    size = config.batch_size
    batches = [task.batch(step, seed=config.seed, batch_size=size) for step in range(200)]
    settings: dict[str, Any] = dict(search.settings)
    with surroundings(config):
        model = task.model()
        load_weights(model, store / run_name(search.config))
        plan = dominosearch(
            model.to(config.device),
            batches,
            task.loss,
            m=search.m,
            target=search.target,
            include=task.defaults.include or None,
            **settings,
        )
    plan.save(path)
    return path


def measure_drift(drift: Drift, store: Path) -> Path:
    """Returns the file with ‖v̂_t − v̂_t0‖∞ of a dense training, and its bound, measured unless it is there.

    Between t0 and t, v̂ is an average of v̂_t0 and of the squared gradients that came after, in which the
    latter have the weight ``(1 − β2^(t−t0)) / (1 − β2^t)``. Both lie between 0 and G², where G is the
    largest gradient of any coordinate up to t, so

        ‖v̂_t − v̂_t0‖∞ ≤ (1 − β2^(t−t0)) / (1 − β2^t) · G².

    Args:
        drift: the training, and where t0 lies in it.
        store: folder of all runs.

    Source:
        STEP, Theorem 1, is about this distance.
    Deviation:
        The bound is derived here, from the definition of v̂ alone: it holds for every run, without
        assumptions, and needs nothing but the largest gradient that was seen.
    """
    path = store / drift.file
    if path.exists():
        return path
    task = load_task(drift.config)
    config = drift.config.resolve(task.defaults)
    assert config.steps is not None
    start = max(1, round(drift.start * config.steps))  # before the first step there is no variance
    with surroundings(config):
        rows = list(_drift_rows(Training(config, task), start))
    store.mkdir(parents=True, exist_ok=True)
    write_json(
        path, {"start": rows[0]["step"], "beta2": config.betas[1], "config": config.to_dict(), "rows": rows}
    )
    return path


def _drift_rows(training: Training, start: int) -> Iterator[dict[str, float]]:
    """Yields a row for t0 and for every step after it."""
    beta2 = training.config.betas[1]
    assert training.config.steps is not None
    largest, reference, before = 0.0, [], _variances(training)
    while training.step < training.config.steps:
        training.train_step()
        after = _variances(training)
        step = training.step
        # v_t = β2 v_(t-1) + (1 - β2) g²; the gradients themselves are gone by now.
        squares = [
            (new - beta2 * old) / (1 - beta2) for new, old in zip(after, before or _zeros(after), strict=True)
        ]
        largest = max(largest, *(float(square.max()) for square in squares))
        before, corrected = after, [v / (1 - beta2**step) for v in after]
        if step == start:
            reference = corrected
        if step >= start:
            distance = max(float((v - r).abs().max()) for v, r in zip(corrected, reference, strict=True))
            share = (1 - beta2 ** (step - start)) / (1 - beta2**step)
            yield {"step": step, "distance": distance, "bound": share * largest, "largest_square": largest}


def _variances(training: Training) -> list[Tensor]:
    state = training.optimizer.state
    return [entry["exp_avg_sq"].double() for entry in state.values() if "exp_avg_sq" in entry]


def _zeros(like: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(tensor) for tensor in like]
