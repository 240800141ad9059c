"""The reference of a room: an entry for each name in its `__all__`, under the shortest name that users write."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

import nmstep


def public_name(module: ModuleType, name: str) -> str:
    """Returns `nmstep.NAME` where the package exports the same thing, and the room's own name elsewhere."""
    exported = name in nmstep.__all__ and getattr(nmstep, name) is getattr(module, name)
    return f"nmstep.{name}" if exported else f"{module.__name__}.{name}"


def entry(module: ModuleType, name: str, *, inherited: bool = False) -> list[str]:
    """Returns the directive that documents one name; none for an alias of a type."""
    value, parent = getattr(module, name), public_name(module, name).rpartition(".")[0]
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        options = ["   :members:", *(["   :inherited-members:"] if inherited else [])]
        return [f".. currentmodule:: {parent}", f".. {kind}:: {name}", *options, ""]
    if inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        return [f".. currentmodule:: {parent}", f".. autofunction:: {name}", ""]
    return []


class Room(SphinxDirective):
    """Documents a room, or the names of it that are listed in the option `only`; inherited methods too if asked."""

    required_arguments = 1
    option_spec = {"only": directives.unchanged, "inherited": directives.flag}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Returns the entries."""
        module = import_module(self.arguments[0])
        names = self.options.get("only", "").split() or module.__all__
        inherited = "inherited" in self.options
        lines = [line for name in names for line in entry(module, name, inherited=inherited)]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def setup(app: Any) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("room", Room)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
