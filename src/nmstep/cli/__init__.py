"""The command line: thin commands over the library, which itself never prints."""

import sys

from nmstep.packages import require

__all__ = ["main"]


def main() -> int:
    """Runs the command line and returns its exit status; says what to install where its packages are missing."""
    try:
        for package in ("rich", "tyro"):
            require(package, "the command line")
    except ImportError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    from nmstep.cli.main import main as run

    return run()
