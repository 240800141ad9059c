"""The page: self-contained, escaped, complete, and written at once."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nmstep.reports import write_report

Write = Callable[..., Path]
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a browser would load, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [
            v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in ("th", "td", "li", "p") else ""

    def handle_data(self, data: str) -> None:
        self.text += "" if "style" in self.open else data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compared(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(comparison, tmp_path_factory.mktemp("page"))


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_page_needs_nothing_else(compared: Path) -> None:
    page = read(compared)
    assert page.open == []
    assert len(page.loads) == 5
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", compared.read_text(encoding="utf-8"))
    pngs = sorted((compared.parent / "plots").iterdir())
    assert [png.name for png in pngs] == [
        "final.png",
        "flips.png",
        "metric.png",
        "switch.png",
        "variance.png",
    ]
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)


def test_the_page_tells_results_settings_plan_and_how_to_repeat(compared: Path) -> None:
    text = words(read(compared))
    for expected in (
        "14 of 14 runs",
        "98.50 ± 0.71",
        "−2.00",
        "40 (latest step allowed)",
        "✓ yes",
        "digits at 1:16: STEP closes 75% of the gap between SR-STE and dense, which is 2.00 percentage points",
        "below SR-STE's (0.0600 against 0.1100)",
        "Some <CPU> & Co",
        "torch 2.13.0",
        "seed 0, 1",
        "1 input channel",
        "nmstep compare --task digits",
        "abc123",
    ):
        assert expected in text, expected
    assert "needs a look" not in text


def test_names_are_escaped(write: Write) -> None:
    hostile = "<script>alert('x')</script>&amp;"
    folder = write("asp", "1:4", 0, 97.0, task=hostile, layers=("<b>layer</b>.weight",), command=hostile)
    path = write_report(folder.parent)
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b>" not in html
    assert hostile in words(read(path))


def test_unfinished_diverged_and_unverified_runs_are_listed(write: Write) -> None:
    write("ste", "1:4", 0, 97.0, finished=False, steps=33)
    write("ste", "1:4", 1, 97.0, loss=float("nan"))
    folder = write("ste", "1:4", 2, 97.0, verified=False)
    text = words(read(write_report(folder.parent)))
    assert "2 of 3 runs" in text
    assert "3 runs need a look" in text
    assert "ste-1x4-s0: unfinished: 33 of 100 steps recorded" in text
    assert "ste-1x4-s1: diverged" in text
    assert "ste-1x4-s2: its final weights do not follow the pattern" in text
    assert "✗ no" in text
    assert "not finite" in text


def test_a_report_of_unfinished_runs_only(write: Write) -> None:
    folder = write("step", "1:4", 0, 97.0, finished=False, steps=33)
    assert "No run has finished yet" in words(read(write_report(folder)))


def test_a_run_that_recorded_nothing_still_gets_a_page(write: Write) -> None:
    folder = write("asp", "1:4", 0, 97.0, finished=False)
    for name in ("metrics.jsonl", "environment.json", "plan.json"):
        (folder / name).unlink()
    text = words(read(write_report(folder)))
    assert "The command was not recorded" in text
    assert not (folder / "plots").exists()


def test_the_page_goes_where_it_is_asked_to(write: Write, tmp_path: Path) -> None:
    folder = write("dense", None, 0, 97.0)
    assert write_report(folder) == folder / "report.html"
    assert write_report(folder, tmp_path / "a") == tmp_path / "a" / "report.html"
    assert write_report(folder, tmp_path / "b" / "page.html") == tmp_path / "b" / "page.html"
    assert (tmp_path / "b" / "plots" / "metric.png").exists()


def test_a_report_that_fails_leaves_the_old_one_whole(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("dense", None, 0, 97.0)
    path = write_report(folder)
    before = path.read_bytes()

    def full(*_: Path) -> Path:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report(folder)
    assert path.read_bytes() == before
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    folder = write("asp", "1:4", 0, 97.0)
    real = importlib.import_module

    def absent(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=rf"{package} is needed for .*nmstep\[cli\]"):
        write_report(folder)


def test_the_tables_import_neither_plotting_nor_templates() -> None:
    code = "import sys, nmstep.reports; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
