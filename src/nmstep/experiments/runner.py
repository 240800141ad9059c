"""The training loop around a run folder: everything on disk, at any moment, is enough to go on.

A run folder holds ``config.json`` and ``environment.json`` from the start, ``plan.json``,
``metrics.jsonl``, the last two checkpoints with ``latest.json``, and at the end ``model.safetensors`` and,
last of all, ``result.json``. Trackers may write more beside these; nothing here reads that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from nmstep.experiments import checkpoint
from nmstep.experiments.config import RunConfig
from nmstep.experiments.environment import environment
from nmstep.experiments.folder import check_folder, only_one
from nmstep.experiments.metrics import MetricsLog, read_metrics
from nmstep.experiments.progress import Progress, Silent, Status
from nmstep.experiments.resources import peak_memory_mb, reset_peak_memory
from nmstep.experiments.training import Training, load_task, surroundings
from nmstep.experiments.weights import save_weights
from nmstep.files import read_json, remove_leftovers, sha256_of, write_json
from nmstep.integrations.trackers import Feed, Tracker

__all__ = ["run"]

_BLOCK = 256
_SECONDS_BETWEEN_UPDATES = 0.1


def run(
    config: RunConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: Progress | None = None,
    trackers: Iterable[Tracker] = (),
) -> dict[str, Any]:
    """Trains as ``config`` says, writes the run folder, and returns what is in its ``result.json``.

    A run that was killed at any moment and is resumed ends with the same weights, bit for bit, and the same
    ``metrics.jsonl`` as one that was not. A finished run that is resumed returns its result at once.

    Args:
        config: what to run.
        folder: the run folder; made if it is not there.
        resume: go on with the run in ``folder``; one that is not there yet is started.
        progress: is told where the run is.
        trackers: are told of each step and score; a resumed run is told to those it is resumed with.

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is False.
        ValueError: the configuration does not fit the task, its data, or the run in ``folder``; or no
            checkpoint can be read.
        OSError: data cannot be read, or the folder cannot be written to (a full disk, for one).
        FloatingPointError: a gradient is not finite and ``on_nonfinite`` is ``"raise"``.
        RuntimeError: the final weights are not N:M as planned.
    """
    folder = Path(folder)
    if not resume and (folder / "config.json").exists():
        raise FileExistsError(
            f"{str(folder)!r} holds a run already: resume it (--resume, resume=True) or choose another folder"
        )
    task = load_task(config)
    config = config.resolve(task.defaults)
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder), surroundings(config):  # what is looked at here, nobody changes meanwhile
        check_folder(config, folder)
        if (folder / "result.json").exists():
            return read_json(folder / "result.json")
        reset_peak_memory(config.device)
        training = Training(config, task)
        return _Run(training, folder, progress or Silent(), tuple(trackers)).go()


class _Run:
    """A training and its folder."""

    def __init__(
        self, training: Training, folder: Path, progress: Progress, trackers: tuple[Tracker, ...]
    ) -> None:
        self.training, self.folder, self.progress = training, folder, progress
        self.trackers = trackers
        self.config = training.config
        assert self.config.steps is not None
        self.total = self.config.steps
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()
        self._earlier_seconds = self._earlier_cpu_seconds = 0.0
        self._updated = -1.0

    def go(self) -> dict[str, Any]:
        """Starts or goes on, trains to the end, and returns the result."""
        remove_leftovers(self.folder)
        state = checkpoint.load_latest(self.folder)
        written = {} if state is None else self._take(state)
        self._write_head()
        self.feed = Feed(self.training.sparsifier, self.trackers, {"config": self.config.to_dict()})
        self.metrics = MetricsLog(self.folder / "metrics.jsonl", **written)
        self.progress.start(self.total, self.training.step)
        try:
            while self.training.step < self.total:
                self._step()
            result = self._finish()
            self.feed.finish()
            return result
        finally:
            self.progress.stop()
            self.metrics.close()
            with contextlib.suppress(OSError):  # the rest of what failed and was reported
                self.feed.finish()

    def _take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Goes on from a checkpoint, and returns what it says of the metrics."""
        try:
            self.training.load_state_dict(state["training"])
            self._earlier_seconds, self._earlier_cpu_seconds = state["seconds"], state["cpu_seconds"]
            return {"size": state["metrics_bytes"], "sha256": state["metrics_sha256"]}
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint in {str(self.folder)!r} is whole, but not of this run: {error!r}; another version "
                f"of nmstep or something else wrote it: go on with that, or train again in another folder"
            ) from error

    def _write_head(self) -> None:
        """Writes what says which run this is; the configuration last, since it is what marks a run."""
        if (self.folder / "config.json").exists():
            return
        write_json(self.folder / "environment.json", environment())
        if self.training.plan is not None:
            write_json(self.folder / "plan.json", self.training.plan.to_dict())
        write_json(self.folder / "config.json", self.config.to_dict())

    def _step(self) -> None:
        training, config = self.training, self.config
        phase = training.sparsifier.phase
        loss = training.train_step()
        step, last = training.step, training.step == self.total
        if training.sparsifier.phase != phase:
            self.progress.switched(step, training.sparsifier.switch_reason or "")
        now = time.perf_counter()
        if last or now - self._updated >= _SECONDS_BETWEEN_UPDATES:
            self._updated = now
            self.progress.update(self._status(float(loss)))
        assert config.eval_every is not None
        if step % config.eval_every == 0 and not last:  # the last one scores the finished model
            self._flush()
            self._evaluate()
        if last or (config.checkpoint_every and step % config.checkpoint_every == 0):
            self._flush()
            self._checkpoint()
        elif step % _BLOCK == 0:
            self._flush()

    def _status(self, loss: float) -> Status:
        sparsifier = self.training.sparsifier
        waits = sparsifier.phase == "dense"
        return Status(
            step=self.training.step,
            loss=loss,
            phase=sparsifier.phase,
            z_mean=sparsifier.window_mean if waits else None,
            threshold=sparsifier.trace.threshold if waits else None,
        )

    def _flush(self) -> None:
        self.metrics.write(self.training.new_records())
        self.feed.flush()

    def _evaluate(self) -> dict[str, float]:
        scores, masked = self.training.evaluate()
        step, phase = self.training.step, self.training.sparsifier.phase
        self._write_scores(phase, scores, masked)
        self.progress.evaluated(step, scores, masked)
        return scores

    def _write_scores(self, phase: str, scores: dict[str, float], masked: dict[str, float] | None) -> None:
        record = {"kind": "eval", "step": self.training.step, "phase": phase, **scores, "masked": masked}
        self.metrics.write([record])
        under_masks = {f"eval/masked/{name}": value for name, value in (masked or {}).items()}
        self.feed.log({f"eval/{name}": value for name, value in scores.items()} | under_masks)

    def _checkpoint(self) -> None:
        """Saves the state; what the metrics hold up to here is on the disk already."""
        state = {
            "training": self.training.state_dict(),
            "metrics_bytes": self.metrics.size,
            "metrics_sha256": self.metrics.sha256,
            "seconds": self._seconds(),
            "cpu_seconds": self._cpu_seconds(),
        }
        checkpoint.save(self.folder, state, step=self.training.step)

    def _seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._started

    def _cpu_seconds(self) -> float:
        return self._earlier_cpu_seconds + time.process_time() - self._cpu_started

    def _finish(self) -> dict[str, Any]:
        """Makes the model plain and N:M, scores, saves and verifies it, and writes the result last."""
        training = self.training
        sparsifier = training.sparsifier
        phase = sparsifier.phase
        sparsifier.finalize()
        scores = training.score()
        self._write_scores("sparse" if training.is_sparse_recipe else "dense", scores, None)
        self.progress.evaluated(training.step, scores, None)
        sparse_plan = training.plan if training.is_sparse_recipe else None
        path = self.folder / "model.safetensors"
        save_weights(training.model, path, plan=sparse_plan)
        checkpoint.remove_older(self.folder)
        result = {
            "metric": training.task.metric,
            "higher_is_better": training.task.higher_is_better,
            "final": scores,
            "best": self._best(),
            "steps": training.step,
            "skipped_steps": sparsifier.skipped_steps,
            "switch_step": sparsifier.switch_step,
            "switch_reason": sparsifier.switch_reason,
            "phase": phase,
            "verified": None if sparse_plan is None else _verify(path),
            "density": _density(training.model),
            "sha256": sha256_of(path).hexdigest(),
            "seconds": self._seconds(),
            "cpu_seconds": self._cpu_seconds(),
            "peak_memory_mb": peak_memory_mb(training.device),
            "step_ms": 1000 * training.train_seconds / training.step,
        }
        write_json(self.folder / "result.json", result)
        return result

    def _best(self) -> float:
        """Returns the best score of a model as the recipe leaves it: for a sparse recipe, a sparse one."""
        task = self.training.task
        phase = "sparse" if self.training.is_sparse_recipe else "dense"
        records = read_metrics(self.metrics.path, "eval")
        values = [float(record[task.metric]) for record in records if record["phase"] == phase]
        return max(values) if task.higher_is_better else min(values)


def _verify(path: Path) -> bool:
    from nmstep.verify import verify

    report = verify(path)
    if not report.ok:
        raise RuntimeError(f"the weights in {str(path)!r} are not N:M as planned, a bug of nmstep:\n{report}")
    return True


def _density(model: torch.nn.Module) -> float:
    """Returns the share of the model's weights that are not zero."""
    parameters = list(model.parameters())
    kept = sum(int(torch.count_nonzero(p)) for p in parameters)
    return kept / max(1, sum(p.numel() for p in parameters))
