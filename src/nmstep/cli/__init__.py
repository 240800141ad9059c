"""The command line: thin commands over the library, which itself never prints."""

import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command line and returns its exit status; says what to install where its packages are missing."""
    try:
        from nmstep.cli.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "nmstep").startswith("nmstep"):
            raise
        print(  # noqa: T201
            f"nmstep's command line needs the package {error.name!r}, which is not installed; "
            f"from a checkout: pip install -c constraints.txt '.[cli,tasks]'",
            file=sys.stderr,
        )
        return 2
    return run()
