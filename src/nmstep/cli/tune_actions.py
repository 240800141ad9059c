"""What ``nmstep tune`` does: calls the library and shows grid, winner, and who took it over."""

from __future__ import annotations

import math
import shlex
import statistics
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nmstep.cli import commands
from nmstep.cli.console import output, say, say_warning
from nmstep.cli.outcomes import interrupted, tell_failures, tell_warnings
from nmstep.cli.spelling import train_command
from nmstep.cli.study_bars import StudyBars
from nmstep.experiments import Point, TuneConfig, Tuning, load_task, tune

__all__ = ["tune_recipe"]


def tune_recipe(command: commands.Tune) -> int:
    """Searches the grid, runs what takes the winner over, and returns the exit status."""
    config = TuneConfig(**commands.values_of(command.search))
    folder = command.out or Path("runs") / f"tune-{config.task}"
    where = shlex.quote(str(folder))
    try:
        with StudyBars("all runs", _names(config)) as bars:
            tuning = tune(config, folder, progress=bars)
    except KeyboardInterrupt:
        if not (folder / "tune.json").exists():
            raise
        return interrupted(f"nmstep tune --config {where}/tune.json --out {where}")
    then = {name: outcome for runs in tuning.then.values() for name, outcome in runs.items()}
    tell_warnings({**tuning.outcomes, **then})
    _tell_losers(tuning)
    output.print(_grid_table(tuning))
    say(f"{tuning.metric}, mean ± sample standard deviation; * is the best")
    _tell_followers(config, tuning)
    winner = tuning.winner
    say(f"{config.recipe} is best at lr {winner.lr:g}, batch size {winner.batch_size}:")
    say(train_command(tuning.config))
    say(f"Folder: {folder}")
    return tell_failures(then)


def _names(config: TuneConfig) -> list[str]:
    """Returns the names of all runs, as if the first pair won; only their number and length matter."""
    defaults = load_task(config.run(config.recipe, config.seeds[0])).defaults
    grid = config.grid(defaults)
    pairs = [*((config.recipe, pair) for pair in grid), *((recipe, grid[0]) for recipe in config.then)]
    return [name for recipe, pair in pairs for name, _ in config.runs(recipe, *pair, defaults)]


def _tell_losers(tuning: Tuning) -> None:
    """Prints why runs of the search failed, once for each reason: a pair that diverges is an answer too."""
    names: dict[str, list[str]] = {}
    for name, outcome in tuning.outcomes.items():
        if outcome.error is not None:
            names.setdefault(outcome.error, []).append(name)
    for error, (first, *others) in names.items():
        more = f" and {len(others)} more" if others else ""
        say_warning(f"{first}{more} failed and cannot win: {error}")


def _grid_table(tuning: Tuning) -> Table:
    """Returns learning rates down, batch sizes across; the best in bold, with a star."""
    rates = list(dict.fromkeys(point.lr for point in tuning.points))
    sizes = list(dict.fromkeys(point.batch_size for point in tuning.points))
    points = {(point.lr, point.batch_size): point for point in tuning.points}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("lr", justify="right")
    for size in sizes:
        steps = points[rates[0], size].steps
        table.add_column(f"batch {size}\n{steps} steps", justify="right")
    for rate in rates:
        cells = [_cell(points[rate, size], tuning) for size in sizes]
        table.add_row(f"{rate:g}", *cells)
    return table


def _cell(point: Point, tuning: Tuning) -> str:
    if point.mean is None:
        return f"[red]{point.failed} failed[/red]" if point.failed else "[red]not finite[/red]"
    text = _spread(point.values, tuning.metric)
    return f"[bold]{text} *[/bold]" if point is tuning.winner else f"{text}  "


def _tell_followers(config: TuneConfig, tuning: Tuning) -> None:
    """Prints what came of each recipe that took the winner over."""
    for recipe, outcomes in tuning.then.items():
        results = [outcome.result for outcome in outcomes.values() if outcome.result is not None]
        values = tuple(float(result["final"][tuning.metric]) for result in results)
        steps = [result["switch_step"] for result in results if result["switch_step"]]
        if values:
            label = " ".join(filter(None, (recipe, config.pattern if recipe != "dense" else None)))
            seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
            switch = f", masks from step {statistics.fmean(steps):.0f}" if steps else ""
            spread = _spread(values, tuning.metric)
            say(f"{label} with the same: {tuning.metric} {spread} ({seeds}{switch})")


def _spread(values: tuple[float, ...], metric: str) -> str:
    form = ".2f" if metric == "accuracy" else ".3f"
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return f"{mean:{form}}"
    return f"{mean:{form}} ± {statistics.stdev(values):{form}}"
