"""How the documentation is built: `make docs`, offline, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nmstep

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "nmstep"
author = "The nmstep authors"
copyright = author  # noqa: A001
version = release = nmstep.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "messages", "rooms"]
exclude_patterns = ["extensions"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"nmstep {release}"
html_static_path = ["static"]
html_css_files = ["nmstep.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "tango"
pygments_dark_style = "github-dark"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style"), ("Deviation", "notes_style")]
napoleon_use_ivar = True

# Builds are offline, so other projects' types are no links; neither is what is not public.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|os|collections|pathlib|typing|matplotlib|numpy|transformers|lightning)\..*"),
    (r"py:class", r"Figure|Tensor|OnNonfinite|nn\..*|nmstep\.recipes\.layerwise\.Batch"),
    (r"py:.*", r"nmstep\.(tiles|late|files|quantizing|names|bench\.inputs)\..*|run_jobs"),
    (r"py:class", r"nmstep\.(verify\.groups|deploy\.(description|semi_structured|speed))\..*"),
    (r"py:class", r"nmstep\.experiments\.paper\.study\..*"),
]


def keep_colons(_app: Any, what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Keeps napoleon from taking "is it N" for the type in a property's "is it N:M"."""
    if what in ("property", "attribute") and lines and ":" in lines[0]:
        lines[0] = f": {lines[0]}"


def no_signature(_app: Any, what: str, _name: str, value: Any, *_: Any) -> tuple[str, None] | None:
    """Leaves out the arguments of a protocol, which nobody calls."""
    return ("", None) if what == "class" and getattr(value, "_is_protocol", False) else None


def list_pages(_app: Any, name: str, source: list[str]) -> None:
    """Adds contents that follow from the folder: the pages of results."""
    if name == "results/README":
        pages = "digits\noverhead\ntable*/index\nfig*/index\ntheorem*/index"
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{pages}\n```\n"


def setup(app: Any) -> None:
    """Registers what is done to single pages."""
    app.connect("source-read", list_pages)
    app.connect("autodoc-process-signature", no_signature)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon
