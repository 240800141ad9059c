"""Optional packages: one message, which names an extra that brings the package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nmstep
from nmstep.packages import EXTRAS, require

SOURCE = Path(nmstep.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
# What a package is called where it is installed from.
SOLD_AS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def brought_by(extra: str) -> set[str]:
    return {re.split(r"[<>=;\[ ]", line)[0] for line in PROJECT["optional-dependencies"][extra]}


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", getattr(node.func, "attr", "")) == name
            ):
                yield path, node


@pytest.mark.parametrize(("package", "extra"), EXTRAS.items())
def test_the_extra_brings_the_package(package: str, extra: str) -> None:
    assert SOLD_AS.get(package, package) in brought_by(extra)


def test_every_package_that_is_required_has_an_extra() -> None:
    required = {
        (str(call.args[0].value).partition(".")[0], *(k.value.value for k in call.keywords))  # type: ignore[attr-defined]
        for _, call in calls("require")
        if isinstance(call.args[0], ast.Constant)
    }
    assert len(required) > 12
    for package, *extra in required:
        if (
            package == "torch"
        ):  # comes with nmstep itself, and its extra is that of a package which a part of it needs
            continue
        assert SOLD_AS.get(package, package) in brought_by(extra[0] if extra else EXTRAS[package])


def test_nothing_imports_a_package_by_another_way() -> None:
    optional = {*EXTRAS, "peft", "accelerate", "torchao"}
    wrong = []
    for path in SOURCE.rglob("*.py"):
        if path.parent.name in ("cli", "integrations"):  # needed as a whole; they ask beforehand
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing = {
            id(n)
            for t in ast.walk(tree)
            if isinstance(t, ast.If) and "TYPE_CHECKING" in ast.dump(t.test)
            for n in t.body
        }
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if id(node) not in typing and {n.partition(".")[0] for n in names} & optional:
                wrong.append(f"{path.relative_to(SOURCE)}: {ast.unparse(node)}")
    wrong += [
        str(path)
        for path, call in calls("import_module")
        if isinstance(call.args[0], ast.Constant) and str(call.args[0].value).partition(".")[0] in optional
    ]
    assert not wrong


def lacking(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]


def test_the_message_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(package: str, extra: str) -> str:
        return rf"{package} is needed for .* and is not installed: pip install 'nmstep\[{extra}\]'"

    (tmp_path / "m.safetensors").write_bytes(b"x")
    (tmp_path / "m.onnx").write_bytes(b"x")
    lacking(monkeypatch, "safetensors")
    lacking(monkeypatch, "onnx")
    from nmstep.experiments.weights import load_weights, save_weights

    model = torch.nn.Linear(4, 2)
    for use in (
        lambda: nmstep.verify(tmp_path / "m.safetensors", "2:4"),
        lambda: nmstep.load_packed(tmp_path / "m.safetensors", model),
        lambda: load_weights(model, tmp_path / "m.safetensors"),
        lambda: save_weights(model, tmp_path / "n.safetensors", plan=None),
        lambda: nmstep.export_dense(model, tmp_path / "e"),
    ):
        with pytest.raises(ImportError, match=said("safetensors", "cli")):
            use()
    for use in (
        lambda: nmstep.verify(tmp_path / "m.onnx", "2:4"),
        lambda: nmstep.export_onnx(model, torch.ones(1, 4), tmp_path / "n.onnx"),
    ):
        with pytest.raises(ImportError, match=said("onnx", "onnx")):
            use()
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=said("matplotlib", "cli")):
        require("matplotlib", "the plot of a bench")
    code = "import sys; sys.modules['tyro'] = None; from nmstep.cli import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(f"Error: {said('tyro', 'cli')}\n", ended.stderr)
