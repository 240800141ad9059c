"""The runs that are disturbed, and what must be the same when they end."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nmstep.experiments import RecipeOptions, RunConfig
from soak.board import Board
from soak.children import train

__all__ = ["CONFIGS", "STEPS", "Whole", "differences", "resumed", "undisturbed"]

STEPS = 60
_STEP = RunConfig(
    recipe="step",
    pattern="1:16",
    exclude=("conv1",),
    steps=STEPS,
    batch_size=16,
    eval_every=15,
    checkpoint_every=6,
    threads=1,
    device="cpu",
    options=RecipeOptions(threshold=1e-30, window=8, eps_root=1e-6),
)
#: Three kinds of state: a frozen variance and a switch that remembers, a pattern that changes, a mask that stays.
CONFIGS = {
    "step": _STEP,
    "decaying-mask": replace(
        _STEP, recipe="decaying-mask", options=RecipeOptions(dense_steps=24, interval=9), seed=1
    ),
    "asp": replace(_STEP, recipe="asp", options=RecipeOptions(start=36), seed=2, optimizer="sgd", lr=0.05),
}
# What a run measures of its own time and of where it was.
_ITS_OWN = {"seconds", "cpu_seconds", "step_ms", "peak_memory_mb", "train_seconds"}


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed.

    Args:
        config: of the run.
        folder: of the run.
        switch_step: when its masks started.
        step_seconds: what one of its steps took.
        save_seconds: what writing a checkpoint took.
    """

    config: RunConfig
    folder: Path
    switch_step: int
    step_seconds: float
    save_seconds: float


def undisturbed(config: RunConfig, folder: Path) -> Whole:
    """Runs a configuration in a process of its own, without a disturbance."""
    child = train(config, folder, resume=False)
    outcome = child.outcome()
    if outcome.error is not None:
        raise RuntimeError(f"the undisturbed run failed: {outcome.error}")
    result = outcome.value
    return Whole(config, folder, result["switch_step"], result["step_ms"] / 1000, child.board.seconds_to_save)


def resumed(whole: Whole, folder: Path, stopped: Board) -> list[str]:
    """Resumes a run to its end, and returns what is wrong: with the end, or with where it went on from.

    Args:
        whole: the run that nothing disturbed.
        folder: of the disturbed one.
        stopped: where that one was last.
    """
    child = train(whole.config, folder)
    outcome = child.outcome()
    if outcome.error is not None:
        return [f"could not be resumed: {': '.join(outcome.error)}"]
    wrong = differences(folder, whole.folder) + [f"warned: {text}" for text in outcome.warnings]
    if 0 <= child.board.first < stopped.saved:
        wrong.append(f"went on from step {child.board.first}, though {stopped.saved} were saved")
    return wrong


def differences(folder: Path, whole: Path) -> list[str]:
    """Returns how a run that has ended differs from one that nothing disturbed: nothing, if all is well.

    Final weights and metrics are compared byte by byte, the last checkpoint tensor by tensor and bit by bit, the
    result value by value; what a run measures of its own time is left out.
    """
    found = [
        f"{name} differs"
        for name in ("model.safetensors", "metrics.jsonl", "plan.json", "config.json")
        if (folder / name).read_bytes() != (whole / name).read_bytes()
    ]
    ours, theirs = (_result(path) for path in (folder, whole))
    found += [f"result {key!r}: {ours.get(key)!r}" for key in theirs if ours.get(key) != theirs[key]]
    states = [_last_checkpoint(path) for path in (folder, whole)]
    found += [f"checkpoint: {where}" for where in _unequal("", *states)]
    found += [f"{path.name} was left behind" for path in folder.glob(".*")]
    kept = sorted(path.name for path in folder.glob("checkpoint-*"))
    if len(kept) != 2:
        found.append(f"checkpoints kept: {kept}")
    return found


def _result(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in _ITS_OWN}


def _last_checkpoint(folder: Path) -> dict[str, Any]:
    latest = json.loads((folder / "latest.json").read_text(encoding="utf-8"))
    state: dict[str, Any] = torch.load(folder / latest["file"], weights_only=True)
    return state


def _unequal(where: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(theirs, dict):
        if not isinstance(ours, dict) or ours.keys() != theirs.keys():
            return [f"{where} has other keys"]
        keys = [key for key in theirs if key not in _ITS_OWN]
        return [line for key in keys for line in _unequal(f"{where}.{key}", ours[key], theirs[key])]
    if isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
        return [] if same and _bits(ours) == _bits(theirs) else [f"{where} differs"]
    if isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            return [f"{where} is of another length"]
        pairs = zip(ours, theirs, strict=True)
        return [line for i, pair in enumerate(pairs) for line in _unequal(f"{where}[{i}]", *pair)]
    return [] if repr(ours) == repr(theirs) else [f"{where} is {ours!r}"]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
