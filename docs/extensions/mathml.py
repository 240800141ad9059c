"""Formulas as MathML, made while the pages are built: nothing is loaded when they are read."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def _mathml(node: nodes.Node, display: str) -> str:
    formula = node.astext()
    try:
        written = convert(formula, display=display)
    except Exception as error:  # whatever it does not understand
        LOGGER.warning("cannot read the formula %r: %r", formula, error, location=node)
        return ""
    if "\\" in written:
        LOGGER.warning("the formula %r has an unknown command", formula, location=node)
    # A norm's bars are as high as what is in them, not as the fraction beside them.
    return written.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Writes a formula in a line."""
    writer.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Writes a formula on its own."""
    writer.body.append(f'<div class="math">{_mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Registers the renderer."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
