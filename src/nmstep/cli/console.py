"""Where the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

__all__ = ["errors", "output", "say", "say_error", "say_warning"]

output = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def say(text: str | Text, *, console: Console = output) -> None:
    """Prints text as it is: wrapped at words on a terminal, unbroken in a file, to be searched."""
    console.print(Text(text) if isinstance(text, str) else text, soft_wrap=not console.is_terminal)


def say_error(error: BaseException) -> None:
    """Prints an error as one red message."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    say(Text.assemble(("Error: ", "bold red"), (text, "red")), console=errors)


def say_warning(text: str) -> None:
    """Prints a warning as one yellow message."""
    say(Text.assemble(("Warning: ", "bold yellow"), text), console=errors)
