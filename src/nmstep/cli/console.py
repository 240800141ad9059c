"""Where the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import re
from dataclasses import fields

from rich.console import Console
from rich.text import Text

from nmstep.experiments import CompareConfig, RecipeOptions, RunConfig, TuneConfig

__all__ = ["errors", "output", "say", "say_error", "say_warning", "with_flags"]

output = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
_SETTINGS = {f.name for kind in (RunConfig, CompareConfig, TuneConfig, RecipeOptions) for f in fields(kind)}
_SETTINGS |= {"jobs", "only"}
_FROM_FILE = re.compile(r"\S+\.(toml|json): ")
_SETTING = re.compile(rf"\b({'|'.join(sorted(_SETTINGS))})=(?=(\S?))")


def say(text: str | Text, *, console: Console = output) -> None:
    """Prints text as it is: wrapped at words on a terminal, unbroken in a file, to be searched."""
    console.print(Text(text) if isinstance(text, str) else text, soft_wrap=not console.is_terminal)


def say_error(error: BaseException) -> None:
    """Prints an error as one red message."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    say(Text.assemble(("Error: ", "bold red"), (with_flags(text), "red")), console=errors)


def say_warning(text: str) -> None:
    """Prints a warning as one yellow message."""
    say(Text.assemble(("Warning: ", "bold yellow"), with_flags(text)), console=errors)


def with_flags(text: str) -> str:
    """Returns a message of the library with its settings spelled as flags, unless they come from a file.

    Example:
        >>> with_flags("on_indivisible='dense' leaves it out; recipe 'step' needs pattern='2:4', or data=, say")
        "--on-indivisible 'dense' leaves it out; recipe 'step' needs --pattern '2:4', or --data, say"
    """

    def flag(found: re.Match[str]) -> str:
        return f"--{found[1].replace('_', '-')}{' ' if re.match(r'[^,;.)]', found[2]) else ''}"

    return text if _FROM_FILE.match(text) else _SETTING.sub(flag, text)
