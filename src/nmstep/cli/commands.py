"""The commands and their arguments, as tyro reads them; what they do is in :mod:`nmstep.cli.actions`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nmstep.cli.deploy_commands import Bench, Export, Pack
from nmstep.experiments import CompareConfig, RecipeOptions, RunConfig, TuneConfig

__all__ = [
    "Bench",
    "Command",
    "Compare",
    "Demo",
    "Doctor",
    "Export",
    "Pack",
    "Plan",
    "Report",
    "Reproduce",
    "Train",
]
__all__ += ["Tune", "Verify"]


_STEPS = """optimizer steps at the task's own batch size; another one gets as many as see equally many
examples; none for the task's default."""
_WARMUP = """optimizer steps, as --steps counts them, over which the learning rate rises to its peak; none for
the task's default."""


@dataclass(frozen=True, kw_only=True)
class OptionFlags(RecipeOptions):
    """Options of one recipe or another.

    A SPAN is a number of optimizer steps, or a share of all steps if it is written with a decimal point, as
    0.2 is.
    """

    def __post_init__(self) -> None:
        """Leaves checking to the configuration, whose errors are not tyro's."""


@dataclass(frozen=True, kw_only=True)
class RunFlags(RunConfig):
    """What to train, and how."""

    options: Annotated[OptionFlags, tyro.conf.arg(name="recipe")] = field(default_factory=OptionFlags)

    def __post_init__(self) -> None:
        """Leaves checking to the configuration, whose errors are not tyro's."""


@dataclass(frozen=True, kw_only=True)
class CompareFlags(CompareConfig):
    """What to compare, and how."""

    options: Annotated[OptionFlags, tyro.conf.arg(name="recipe")] = field(default_factory=OptionFlags)

    def __post_init__(self) -> None:
        """Leaves checking to the configuration, whose errors are not tyro's."""


@dataclass(frozen=True, kw_only=True)
class TuneFlags(TuneConfig):
    """What to try, and how."""

    lr: tyro.conf.Suppress[float | None] = None
    batch_size: tyro.conf.Suppress[int | None] = None
    steps: Annotated[int | None, tyro.conf.arg(help=_STEPS)] = None
    warmup: Annotated[int | None, tyro.conf.arg(help=_WARMUP)] = None
    options: Annotated[OptionFlags, tyro.conf.arg(name="recipe")] = field(default_factory=OptionFlags)

    def __post_init__(self) -> None:
        """Leaves checking to the configuration, whose errors are not tyro's."""


def values_of(config: RunConfig | CompareConfig | TuneConfig) -> dict[str, Any]:
    """Returns a configuration's or its flags' values, by field, ready for the other of the two."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    kind = RecipeOptions if isinstance(config.options, OptionFlags) else OptionFlags
    values["options"] = kind(**{f.name: getattr(config.options, f.name) for f in fields(RecipeOptions)})
    return values


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one model, and write a run folder that survives being killed.

    Args:
        out: run folder; none for runs/ and a name made of task, recipe, pattern and seed.
        resume: go on with the run in the folder; its own configuration is taken unless one is given.
        tracker: also write what is recorded to the run folder's tensorboard/, to its nm_trace.jsonl, or
            to both; a resumed run does so only if it is told again.
        config: TOML or JSON file with any of the settings below; flags override it.
    """

    out: Path | None = None
    resume: bool = False
    tracker: Literal["tensorboard", "jsonl", "both"] | None = None
    config: Path | None = None
    run: RunFlags


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare recipes x patterns x seeds on one task; resumes by itself.

    Args:
        out: folder of the comparison; none for runs/compare- and the task's name.
        config: TOML or JSON file with any of the settings below; flags override it.
    """

    out: Path | None = None
    config: Path | None = None
    comparison: CompareFlags


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Show which weights of a task's model become sparse, and why the others do not.

    Args:
        pattern: N weights kept of every M, such as 2:4.
        task: name of the workload, such as digits; an unknown one is answered with all there are.
        data: folder or hub name of the data; none for what the package ships.
        task_options: the task's own options, such as the kind of model.
        include: names or globs of the only parameters that become sparse; none for the task's choice.
        exclude: names or globs of parameters that stay dense.
        on_indivisible: what happens to a layer that M does not divide: left dense, an error, or padded.
        out: JSON file to write the plan to, for --plan-file.
    """

    pattern: str
    task: str = "digits"
    data: str | None = None
    task_options: dict[str, int | float | bool | str | None] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    on_indivisible: Literal["dense", "error", "pad"] = "dense"
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Say whether weights are N:M, tensor by tensor; exit status 0 if so, 1 if not.

    Args:
        path: safetensors or ONNX file, state dict, checkpoint, Hugging Face folder or run folder.
        pattern: N weights kept of every M; none for what the file itself says.
        include: names or globs of the only tensors to look at.
        exclude: names or globs of tensors that may be dense.
        json: print JSON instead of a table.
    """

    path: tyro.conf.Positional[Path]
    pattern: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write an HTML page and plots about the runs in a folder, and print their table.

    Args:
        folder: run folder, or any folder above run folders.
        out: HTML file or folder to write to; none for the folder itself.
    """

    folder: tyro.conf.Positional[Path]
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Compare dense, ASP, SR-STE and STEP at 1:16 on handwritten digits.

    Args:
        out: folder of the comparison; what is finished in it is not repeated.
        jobs: runs at a time.
    """

    out: Path = Path("runs/demo")
    jobs: int = 2


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Search learning rate and batch size for a baseline; STEP takes the best over.

    Args:
        out: folder of all runs; none for runs/tune- and the task's name.
        config: TOML or JSON file with any of the settings below; flags override it.
    """

    out: Path | None = None
    config: Path | None = None
    search: TuneFlags


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Do a table's or figure's runs, as far as needed, and show what came of them.

    Args:
        name: table1 to table5, fig1 to fig8, theorem1, or all.
        scale: cpu for sizes that two cores manage, full for the paper's.
        seeds: one run for each, in place of each workload's own; none for those.
        data: folder that holds the data sets' own folders (cifar-10-batches-py, cifar-100-python, glue,
            wikitext-2-raw, multi30k, and so on); none for their hub names.
        only: names of the only workloads to run; a wrong one is answered with those there are. None for all.
        jobs: runs at a time.
        out: folder of all runs and pages of a scale; none for runs/paper- and the scale.
        device: cpu, cuda, or another that torch knows; none for a GPU where there is one.
        dry_run: show what the runs are and which are done, and run nothing.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    scale: Literal["cpu", "full"] = "cpu"
    seeds: tuple[int, ...] | None = None
    data: Path | None = None
    only: tuple[str, ...] | None = None
    jobs: int = 1
    out: Path | None = None
    device: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say which kernels do the work here, and why, and what else there is."""


Command = Train | Compare | Tune | Reproduce | Plan | Verify | Pack | Export | Bench | Report | Demo | Doctor
