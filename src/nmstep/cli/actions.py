"""What each command does: calls the library and shows what came of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import nmstep
from nmstep.cli import commands
from nmstep.cli.bench_actions import bench_model, quick_verdict
from nmstep.cli.console import errors, output, say
from nmstep.cli.export_actions import export_run
from nmstep.cli.outcomes import interrupted, tell_failures, tell_warnings
from nmstep.cli.pack_actions import pack_checkpoint, pack_run
from nmstep.cli.paper_actions import reproduce_paper
from nmstep.cli.progress import CompareBars, TrainBar
from nmstep.cli.sources import refuse_dense
from nmstep.cli.tables import plan_table, result_line, summary, verify_table
from nmstep.cli.tune_actions import tune_recipe
from nmstep.experiments import (
    CompareConfig,
    RunConfig,
    compare,
    demo_config,
    load_task,
    make_plan,
    run,
)
from nmstep.integrations.trackers import JsonLines, TensorBoard, Tracker
from nmstep.kernels import status

__all__ = ["act"]


def act(command: commands.Command) -> int:
    """Does what a command says and returns the exit status."""
    match command:
        case commands.Train():
            return _train(command)
        case commands.Compare():
            config = CompareConfig(**commands.values_of(command.comparison))
            folder = command.out or Path("runs") / f"compare-{config.task}"
            where = shlex.quote(str(folder))
            again = f"nmstep compare --config {where}/compare.json --out {where}"
            return _compare(config, folder, again=again)
        case commands.Tune():
            return tune_recipe(command)
        case commands.Reproduce():
            return reproduce_paper(command)
        case commands.Plan():
            return _plan(command)
        case commands.Verify():
            return _verify(command)
        case commands.Pack():
            return pack_checkpoint(command)
        case commands.Export():
            return export_run(command)
        case commands.Bench():
            return bench_model(command)
        case commands.Report():
            return _report(command.folder, command.out)
        case commands.Demo():
            return _demo(command)
        case commands.Doctor():
            return _doctor()


def _train(command: commands.Train) -> int:
    config = RunConfig(**commands.values_of(command.run))
    folder = command.out or Path("runs") / _name(config)
    trackers = _trackers(command.tracker, folder)
    try:
        with TrainBar() as bar:
            result = run(config, folder, resume=command.resume, progress=bar, trackers=trackers)
    except KeyboardInterrupt:
        again = f"nmstep train --out {shlex.quote(str(folder))} --resume"
        again += f" --tracker {command.tracker}" if command.tracker else ""
        say(f"Interrupted; go on with: {again}", console=errors)
        return 130
    say(result_line(result))
    if config.recipe != "dense":
        say(pack_run(folder))
        say(quick_verdict(folder / "packed.safetensors"))
    say(f"Run folder: {folder}")
    return 0


def _trackers(kind: str | None, folder: Path) -> list[Tracker]:
    """Returns what ``--tracker`` names, writing into the run folder; nothing is made before the run begins."""
    found: list[Tracker] = []
    if kind in ("tensorboard", "both"):
        found.append(TensorBoard(folder / "tensorboard"))
    if kind in ("jsonl", "both"):
        found.append(JsonLines(folder / "nm_trace.jsonl"))
    return found


def _name(config: RunConfig) -> str:
    pattern = config.pattern.replace(":", "x") if config.pattern and config.recipe != "dense" else None
    label = pattern or ("plan" if config.plan_file else None)
    return "-".join([config.task, config.recipe, *([label] if label else []), f"s{config.seed}"])


def _compare(config: CompareConfig, folder: Path, *, again: str) -> int:
    try:
        with CompareBars([name for name, _ in config.runs()]) as bars:
            comparison = compare(config, folder, progress=bars)
    except KeyboardInterrupt:
        return interrupted(again)
    tell_warnings(comparison.outcomes)
    if comparison.folders:
        output.print(summary(folder))
    return tell_failures(comparison.outcomes)


def _plan(command: commands.Plan) -> int:
    config = RunConfig.from_dict(
        {
            "recipe": "dense",
            "pattern": command.pattern,
            "task": command.task,
            "data": command.data,
            "task_options": command.task_options,
            "include": command.include,
            "exclude": command.exclude,
            "on_indivisible": command.on_indivisible,
        }
    )
    task = load_task(config)
    plan = make_plan(config.resolve(task.defaults), task.model())
    assert plan is not None
    output.print(plan_table(plan))
    if command.out is not None:
        plan.save(command.out)
        say(f"Plan written to {command.out}")
    return 0


def _verify(command: commands.Verify) -> int:
    from nmstep.verify import verify

    if command.pattern is None:  # with one it is counted, whatever the recipe was
        refuse_dense(command.path, "verify")
    report = _verify_packed(command.path, command.pattern)
    if report is None:
        chosen = command.include or None
        report = verify(command.path, command.pattern, include=chosen, exclude=command.exclude)
    if command.json:
        output.print_json(json.dumps(report.to_dict()))
    else:
        output.print(verify_table(report))
        for tensor in report.failed:
            say(f"{tensor.name}: {tensor.failure}")
    return 0 if report.ok else 1


def _verify_packed(path: Path, pattern: str | None) -> nmstep.VerifyReport | None:
    """Returns what verification finds in a packed file, unpacked, or None where the path is something else."""
    from nmstep.deploy.dense_tensors import dense_tensors
    from nmstep.deploy.description import is_packed
    from nmstep.verify import verify
    from nmstep.verify.files import open_path

    if path.suffix != ".safetensors" or not path.is_file() or not is_packed(open_path(path)):
        return None
    dense = dense_tensors(path)
    plan = dense.plan if pattern is None else dense.plan.with_pattern(pattern)
    return replace(verify(dense.tensors, plan=plan), target=str(path))


def _report(folder: Path, out: Path | None) -> int:
    from nmstep.reports import write_report

    page = write_report(folder, out)
    output.print(summary(folder))
    say(f"Report: {page}")
    return 0


def _doctor() -> int:
    kernels = status()
    table = Table(box=None, show_header=False, pad_edge=False)
    threads = {"torch": "torch's own", "own": "started for each call", None: "torch's own"}[kernels.threads]
    on_gpu = {"triton": "kernels in Triton", "torch": "plain torch"}[kernels.on_gpu]
    for name, value in (
        ("nmstep", nmstep.__version__),
        ("torch", torch.__version__),
        ("GPU", f"{torch.cuda.get_device_name()}, {on_gpu}" if torch.cuda.is_available() else "none"),
        ("kernels", f"{kernels.active}: {kernels.why}"),
        ("usable", f"{', '.join(kernels.usable)} (choose with NMSTEP_KERNELS)"),
        ("threads", f"{torch.get_num_threads()}, {threads}"),
    ):
        table.add_row(name, escape(value))
    output.print(table)
    return 0


def _demo(command: commands.Demo) -> int:
    from nmstep.reports import write_report
    from nmstep.verify import verify

    config = replace(demo_config(), jobs=command.jobs)
    runs = dict(config.runs())
    say(
        f"{', '.join(config.recipes)} at {', '.join(config.patterns)} on {config.task}: {len(runs)} runs of "
        f"{config.steps} steps, {config.jobs} at a time."
    )
    status = _compare(config, command.out, again=f"nmstep demo --out {shlex.quote(str(command.out))}")
    if status == 130:
        return status
    last: Path | None = None
    for name, run_config in runs.items():
        path = command.out / name / "model.safetensors"
        if run_config.recipe != "dense" and path.exists():
            report = verify(path, run_config.pattern)
            verdict = f"is {run_config.pattern}" if report.ok else f"is NOT {run_config.pattern}"
            say(Text(f"{name}/{path.name} {verdict}", style="green" if report.ok else "bold red"))
            status = status if report.ok else 1
            if report.ok:
                say(pack_run(command.out / name))
                last = command.out / name / "packed.safetensors"
    if last is not None:
        say(f"{last}: {quick_verdict(last)}")
    say(f"Report: {write_report(command.out)}")
    return status
