"""The entry point: arguments in, exit status out, errors as one readable message."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

import nmstep
from nmstep.cli import commands
from nmstep.cli.actions import act
from nmstep.cli.console import errors, say_error, say_warning
from nmstep.cli.flags import REGISTRY
from nmstep.experiments import CompareConfig, RunConfig, TuneConfig

__all__ = ["main"]

_EXPECTED = (ValueError, OSError, ArithmeticError, RuntimeError, ImportError, TypeError)
_DESCRIPTION = "Learn N:M structured sparsity masks while a model trains."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        0 if it did what was asked, 1 if the answer is no (weights that are not N:M, runs that failed), 2 if
        it could not be done (wrong usage, unreadable files), 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"nmstep {nmstep.__version__}")  # noqa: T201
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say_warning(str(message))
        return _guarded(lambda: act(_parse(arguments)))


def _guarded(action: Callable[[], int]) -> int:
    try:
        return action()
    except SystemExit as end:  # tyro printed help, or what is wrong with the arguments
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except _EXPECTED as error:
        if os.environ.get("NMSTEP_DEBUG") == "1":
            traceback.print_exc()
        say_error(error)
        return 2


def _parse(arguments: list[str]) -> commands.Command:
    kinds: list[Any] = []
    for kind in get_args(commands.Command):
        name = kind.__name__.lower()
        default = _from_file(name, arguments[1:]) if arguments[:1] == [name] else None
        given = {} if default is None else {"default": default}
        kinds.append(Annotated[kind, tyro.conf.subcommand(name, **given)])
    command: commands.Command = tyro.cli(
        _union(kinds),
        prog="nmstep",
        description=_DESCRIPTION,
        args=arguments or ["--help"],
        registry=REGISTRY,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return command


def _union(kinds: list[Any]) -> Any:
    union = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return union


def _from_file(name: str, arguments: list[str]) -> Any:
    """Returns the command's default from the file that ``--config`` names, or from the run to be resumed."""
    file = _value("--config", arguments)
    if name == "train":
        out, tracker = _value("--out", arguments), _value("--tracker", arguments)
        if arguments == ["--resume"]:
            raise ValueError("--resume needs to know which run to go on with: give its folder as --out")
        if file is None and out is not None and "--resume" in arguments:
            saved = Path(out) / "config.json"
            file = str(saved) if saved.exists() else None
            # Nothing that says what to train, only where and how to show it: there is no run to start.
            rest = len(arguments) - (0 if tracker is None else 1 + ("--tracker" in arguments))
            if file is None and rest <= 3:
                raise FileNotFoundError(f"no run to resume in {out!r}: it holds no config.json")
        if file is not None:
            run = commands.RunFlags(**commands.values_of(RunConfig.load(file)))
            return commands.Train(run=run)
    if name == "compare" and file is not None:
        comparison = commands.CompareFlags(**commands.values_of(CompareConfig.load(file)))
        return commands.Compare(comparison=comparison)
    if name == "tune" and file is not None:
        search = commands.TuneFlags(**commands.values_of(TuneConfig.load(file)))
        return commands.Tune(search=search)
    return None


def _value(flag: str, arguments: list[str]) -> str | None:
    """Returns what follows a flag, before tyro reads the arguments: their defaults depend on it."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
    return None
