"""What runs wrote, read back: one :class:`Run` for each folder that holds a ``config.json``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmstep.plan import SparsityPlan

__all__ = ["Run", "load_runs"]

Record = Mapping[str, Any]
_CONFIG_KEYS = ("task", "recipe", "seed")
_RESULT_KEYS = ("metric", "higher_is_better", "final")
# A task that scores by one of these may log those after it too, and then goes by the first.
_METRICS = ("matthews", "f1", "pearson", "bleu", "perplexity", "accuracy")
_LOWER = ("perplexity", "loss")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run as its folder tells it.

    Args:
        path: the run folder.
        name: the folder's path below the one that was searched; its own name if that was it.
        config: the run's configuration.
        environment: versions, hardware, commit and command; empty if not written.
        plan: the sparsity plan, or None.
        result: what the finished run came to; None while it is unfinished.
        steps: the records of optimizer steps, in order.
        evals: the records of evaluations, in order.
        layers: the records of single layers, in order.
        switches: the records of masks starting; usually one.
    """

    path: Path
    name: str
    config: Record
    environment: Record = field(default_factory=dict)
    plan: SparsityPlan | None = None
    result: Record | None = None
    steps: tuple[Record, ...] = ()
    evals: tuple[Record, ...] = ()
    layers: tuple[Record, ...] = ()
    switches: tuple[Record, ...] = ()

    @property
    def task(self) -> str:
        """Name of the workload."""
        return str(self.config["task"])

    @property
    def recipe(self) -> str:
        """Name of the recipe, such as ``"sr-ste"``."""
        return str(self.config["recipe"])

    @property
    def pattern(self) -> str | None:
        """The pattern's text, or the name of the plan file; None for a dense run, whatever it is compared with."""
        if self.recipe == "dense":
            return None
        plan_file = self.config.get("plan_file")
        return str(self.config.get("pattern") or Path(str(plan_file or "own plan")).stem)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    @property
    def finished(self) -> bool:
        """Whether the run wrote its result."""
        return self.result is not None

    @property
    def metric(self) -> str:
        """Name of the task's metric; ``"loss"`` where nothing was evaluated yet."""
        if self.result is not None:
            return str(self.result["metric"])
        return next((name for name in _METRICS for record in self.evals if name in record), "loss")

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is the better one."""
        return bool(self.result["higher_is_better"]) if self.result is not None else self.metric not in _LOWER

    @property
    def last_step(self) -> int:
        """Optimizer steps recorded so far; 0 for none."""
        return max((records[-1]["step"] for records in (self.steps, self.evals) if records), default=0)

    @property
    def switch_step(self) -> int | None:
        """Optimizer steps taken when the masks started, or None."""
        if self.result is not None and self.result.get("switch_step") is not None:
            return int(self.result["switch_step"])
        return self.switches[0]["step"] if self.switches else None

    @property
    def switch_reason(self) -> str | None:
        """Why the masks started, or None."""
        if self.result is not None and self.result.get("switch_reason") is not None:
            return str(self.result["switch_reason"])
        return self.switches[0].get("reason") if self.switches else None

    @property
    def diverged(self) -> bool:
        """Whether a loss or the final metric is not a finite number."""
        final = () if self.result is None else self.result["final"].values()
        losses = [record.get("loss") for record in self.evals[-1:]]
        return any(value is not None and not math.isfinite(value) for value in (*final, *losses))


def load_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """Returns the runs at or below ``folder``, ordered by their paths.

    A run without ``result.json`` is read as far as it got, and a last line of ``metrics.jsonl`` that
    breaks off without a line end is left out: both are what a killed run leaves behind.

    Args:
        folder: a run folder, or any folder above run folders.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: a file is malformed; the message names it, and the line where it has lines.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{os.fspath(folder)!r} is not a folder: give a run folder, or one that holds some"
        )
    runs = [_load_run(path, root) for path in _run_folders(root)]
    if not runs:
        raise FileNotFoundError(
            f"no run found in {os.fspath(folder)!r}: looked in it and in every folder below for "
            f"config.json with the keys {', '.join(_CONFIG_KEYS)}; give the folder that 'nmstep train' or "
            f"'nmstep compare' wrote"
        )
    return runs


def _run_folders(root: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "config.json" in files and _is_run(Path(parent)):
            folders.clear()  # what a run holds is its own, such as an exported model with a config.json
            yield Path(parent)


def _is_run(path: Path) -> bool:
    """Whether the config is a run's; one with metrics beside it must be, and is an error if it is not."""
    config = _read_object(path / "config.json")
    missing = [key for key in _CONFIG_KEYS if key not in config]
    if missing and (path / "metrics.jsonl").exists():
        raise ValueError(
            f"{path / 'config.json'}: expected a run's configuration, but {', '.join(missing)} is missing"
        )
    return not missing


def _load_run(path: Path, root: Path) -> Run:
    records: dict[str, list[Record]] = {"step": [], "eval": [], "layers": [], "switch": []}
    if (path / "metrics.jsonl").exists():
        for record in _read_records(path / "metrics.jsonl"):
            if record["kind"] in records:  # a later version may record more
                records[record["kind"]].append(record)
    plan_file, environment = path / "plan.json", path / "environment.json"
    return Run(
        path=path,
        name=root.resolve().name if path == root else path.relative_to(root).as_posix(),
        config=_read_object(path / "config.json"),
        environment=_read_object(environment) if environment.exists() else {},
        plan=SparsityPlan.load(plan_file) if plan_file.exists() else None,
        result=_read_result(path / "result.json"),
        steps=tuple(records["step"]),
        evals=tuple(records["eval"]),
        layers=tuple(records["layers"]),
        switches=tuple(records["switch"]),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _read_result(path: Path) -> Record | None:
    if not path.exists():
        return None
    result = _read_object(path)
    missing = [key for key in _RESULT_KEYS if key not in result]
    if missing:
        raise ValueError(f"{path}: expected a run's result, but {', '.join(missing)} is missing")
    final = result["final"]
    for key in ("loss", result["metric"]):
        if not isinstance(final, dict) or not _is_number(final.get(key)):
            raise ValueError(f"{path}: expected a number at final.{key}, got {final!r}")
    return result


def _read_records(path: Path) -> Iterator[Record]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == len(lines):  # no line end: the run was killed while it wrote this line
                return
            raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from error
        _check_record(record, f"{path}, line {number}")
        yield record


def _check_record(record: Any, where: str) -> None:
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise ValueError(f"{where}: expected a JSON object with a 'kind', got {record!r:.80}")
    if not isinstance(record.get("step"), int) or isinstance(record["step"], bool):
        raise ValueError(
            f"{where}: expected 'step' to be a number of optimizer steps, got {record.get('step')!r}"
        )
    for key, value in record.items():
        if key in ("kind", "phase", "name", "reason"):
            valid = value is None or isinstance(value, str)
        elif key == "masked":
            valid = value is None or (isinstance(value, dict) and all(map(_is_number, value.values())))
        else:
            valid = value is None or _is_number(value) or record["kind"] not in ("step", "eval", "layers")
        if not valid:
            raise ValueError(f"{where}: {key!r} holds {value!r:.80}, which is not what this key is for")
    if record["kind"] == "layers" and not record.get("name"):
        raise ValueError(f"{where}: a layer's record needs its 'name'")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
