"""The Python on each page of the docs runs, in its order, in an empty folder; commands on them exist."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if "```python" in page.read_text(encoding="utf-8") and "results" not in page.parts
]
NEEDS = {"onnx": "nmstep.export_onnx", "safetensors": "nmstep.save_packed"}


def code_of(page: Path) -> str:
    """The page's Python, without blocks below a comment that says so."""
    blocks = re.findall(
        r"(^<!-- not run -->\n)?^```python\n(.*?)^```",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return "\n".join(code for left_out, code in blocks if not left_out)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = code_of(page)
    for package, call in NEEDS.items():
        if call in code:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, str(page), "exec"), {"__name__": "page"})


def test_what_the_quick_start_shows_is_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    page = DOCS / "quickstart.md"
    text = page.read_text(encoding="utf-8")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), torch.random.fork_rng():
        exec(compile(code_of(page), str(page), "exec"), {"__name__": "page"})
    (table,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert table in said.getvalue()
    assert re.findall(r"print\(sparsifier\)  # (.*)", text)[0] in said.getvalue()


def test_every_command_is_one() -> None:
    commands = Path(pytest.importorskip("nmstep.cli.commands").__file__)
    known = "".join(f.read_text(encoding="utf-8").lower() for f in commands.parent.glob("*commands.py"))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"^\$ nmstep (\w+)", text, re.MULTILINE):
            assert f"class {command}" in known, f"{page}: nmstep {command}"
        for target in re.findall(r"^\$ make (\w+)", text, re.MULTILINE):
            assert target in targets, f"{page}: make {target}"


def test_every_recipe_has_a_page_with_an_equation_and_an_example() -> None:
    pages = [page for page in (DOCS / "recipes").glob("*.md") if page.stem != "index"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for part in ("$$", "```python", "**When to use it.**", "**Caveats.**"):
            assert part in text, f"{page} lacks {part}"
    presets = {"Dense", "ASP", "STE", "SRSTE", "DecayingMask", "STEP"}
    assert {name for name in presets if any(f"nmstep.{name}(" in code_of(p) for p in pages)} == presets
