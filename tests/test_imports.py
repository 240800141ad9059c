"""Rooms import one way, and the core needs torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nmstep

SOURCE = Path(nmstep.__file__).parent
# A room may import from its own line and from lines above it.
ROOMS = [
    ["names", "patterns", "packages", "late", "timing", "files", "ranks", "shards"],
    ["layout"],
    ["masks", "tiles", "quantizing"],
    ["kernels"],
    ["sparsity_plan", "plan"],
    ["switching"],
    ["trace"],
    ["optim"],
    ["recipes"],
    ["gate", "machine", "admission"],
    ["captured"],
    ["views"],
    ["saved", "sparsify"],
    ["verify"],
    ["deploy"],
    ["integrations"],
    ["tasks"],
    ["experiments"],
    ["bench"],
    ["reports"],
    ["cli"],
]
LEVEL = {room: level for level, line in enumerate(ROOMS) for room in line}
CORE = {room for line in ROOMS[: ROOMS.index(["verify"]) + 1] for room in line}


def files() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(SOURCE).parts[0].removesuffix(".py"), path)
        for path in sorted(SOURCE.rglob("*.py"))
        if path != SOURCE / "__init__.py"
    ]


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names += [
                f"{node.module}.{a.name}" if node.module == "nmstep" else str(node.module) for a in node.names
            ]
    return names


def test_every_file_belongs_to_a_room() -> None:
    assert {room for room, _ in files()} <= set(LEVEL)


def test_imports_go_up_only() -> None:
    wrong = []
    for room, path in files():
        for name in imported(path):
            if name.startswith("nmstep."):
                target = name.split(".")[1]
                # `from nmstep import X`: the public surface, for rooms below the core
                level = LEVEL.get(target, LEVEL["verify"])
                if level > LEVEL[room]:
                    wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_the_core_imports_torch_alone_at_its_top_level() -> None:
    core = {"torch", "nmstep", "__future__", *sys.stdlib_module_names}
    for room, path in files():
        if room in CORE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = (
                        [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
                    )
                    # Triton comes with torch for GPUs; these files are loaded where there is one.
                    more = {"triton"} if path.match("kernels/gpu/*programs.py") else set()
                    assert {n.split(".")[0] for n in names} <= core | more, path


def test_import_nmstep_loads_no_optional_package() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import nmstep; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) <= {"nmstep", "torch"}


def test_source_files_stay_small() -> None:
    long = [str(path) for _, path in files() if len(path.read_text(encoding="utf-8").splitlines()) > 300]
    assert not long
