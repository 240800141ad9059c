"""Every message of the package: what errors and warnings say, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import nmstep

SOURCE = Path(nmstep.__file__).parent


@dataclass(frozen=True)
class Message:
    """What one line of the source says, with `…` for what depends on the call."""

    room: str
    kind: str
    text: str
    place: str


def template(node: ast.expr) -> str:
    """Returns a string expression as text, `…` where a value is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "…"


def tidied(text: str) -> str:
    """Returns a message on one line, with one `…` where several values follow each other."""
    return re.sub(r"(…\s*)+…", "…", " ".join(text.split()))


def _said(node: ast.AST) -> tuple[str, str] | None:
    """Returns the kind and the text of an error that is made here, or of a warning."""
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    kind = "UserWarning" if called == "warnings.warn" else called
    if not re.fullmatch(r"[A-Z][A-Za-z.]*(Error|Warning)|pickle\.UnpicklingError", kind):
        return None
    texts = (tidied(template(argument)) for argument in node.args)
    return next(((kind, text) for text in texts if text.strip("… :;")), None)


def messages() -> Iterator[Message]:
    """Yields the messages in the order of the files; not those whose text is made elsewhere."""
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = _said(node)
            if said is not None:
                place = f"{inside}:{node.lineno}"  # type: ignore[attr-defined]
                yield Message(inside.parts[0].removesuffix(".py"), *said, place)


class Messages(SphinxDirective):
    """Lists the messages of the rooms that are its arguments."""

    required_arguments = 1
    optional_arguments = 20

    def run(self) -> list[nodes.Node]:
        """Returns a table of kinds and texts."""
        rows = sorted({(m.text, m.kind) for m in messages() if m.room in self.arguments}, key=_order)
        lines = ["| message | kind |", "|---|---|"]
        lines += [f"| {_code(text)} | {kind} |" for text, kind in rows]
        return self.parse_text_to_nodes("\n".join(lines))


def _order(row: tuple[str, str]) -> str:
    return row[0].lstrip("… ").casefold()


def _code(text: str) -> str:
    return "`` " + text.replace("|", "\\|") + " ``"


def setup(app: Any) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("messages", Messages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
