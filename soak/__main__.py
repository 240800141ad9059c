"""All of it, or a part: ``python -m soak [--parts kills disks] [--scale 0.03] [--seed 7]``."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from soak import company, damage, disks, kills
from soak.calls import TARGETS, fuzz
from soak.children import warm_up
from soak.rows import Row, failed, table
from soak.runs import CONFIGS, Whole, undisturbed

Part = Callable[[list[Whole], Path, random.Random, float], list[Row]]


def _many(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def _kills(wholes: list[Whole], folder: Path, chance: random.Random, scale: float) -> list[Row]:
    return [
        kills.kill_once(wholes, folder, count=_many(100, scale), chance=chance),
        kills.kill_repeatedly(wholes, folder, count=_many(9, scale), kills=6, chance=chance),
    ]


def _disks(wholes: list[Whole], folder: Path, chance: random.Random, scale: float) -> list[Row]:
    return [
        disks.small_disks(wholes, folder, count=_many(20, scale), chance=chance),
        disks.file_limits(wholes, folder, count=_many(20, scale), chance=chance),
        disks.failing_calls(wholes, folder, count=_many(40, scale), chance=chance),
        disks.read_only(wholes, folder, count=_many(9, scale), chance=chance),
    ]


def _company(wholes: list[Whole], folder: Path, chance: random.Random, scale: float) -> list[Row]:
    return [
        company.second_process(wholes, folder, count=_many(15, scale), chance=chance),
        company.start_together(wholes, folder, count=_many(15, scale)),
    ]


def _damage(wholes: list[Whole], folder: Path, chance: random.Random, scale: float) -> list[Row]:
    every = round(1000 / scale)
    return [
        damage.cut_checkpoints(wholes, folder, every=every),
        damage.cut_weights(wholes, folder, every=every),
        damage.flipped_bytes(wholes, folder, count=_many(500, scale), chance=chance),
        damage.flipped_text(wholes, folder, every=round(1 / min(1, scale)), chance=chance),
        damage.resumed_after_damage(wholes, folder, count=_many(30, scale), chance=chance),
    ]


def _calls(_wholes: list[Whole], _folder: Path, chance: random.Random, scale: float) -> list[Row]:
    start = chance.randrange(2**32)
    return [
        fuzz(name, cases, check, count=_many(count, scale), start=start)
        for name, cases, check, count in TARGETS
    ]


PARTS: dict[str, Part] = {
    "kills": _kills,
    "disks": _disks,
    "company": _company,
    "damage": _damage,
    "calls": _calls,
}


def main() -> int:
    """Runs the parts that were asked for, and returns the exit status: 1 if anything did not hold."""
    flags = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    flags.add_argument(
        "--runs", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="which; all by default"
    )
    flags.add_argument("--scale", type=float, default=1.0, help="share of the full number of cases")
    flags.add_argument("--seed", type=int, default=0, help="of all that is random")
    flags.add_argument("--folder", type=Path, help="a new one for the runs; a temporary one by default")
    arguments = flags.parse_args()
    if arguments.folder is not None and arguments.folder.exists() and any(arguments.folder.iterdir()):
        flags.error(
            f"--folder {arguments.folder} is not empty, and is removed when all is done: name a new one"
        )
    warm_up(CONFIGS["step"])
    folder = Path(tempfile.mkdtemp(prefix="soak-")) if arguments.folder is None else arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # a process without rights looks into it
    wholes = []
    if set(arguments.parts) != {"calls"}:
        wholes = [undisturbed(CONFIGS[name], folder / f"whole-{name}") for name in arguments.runs]
    rows: list[Row] = []
    for name in arguments.parts:
        rows += PARTS[name](wholes, folder, random.Random(f"{arguments.seed} {name}"), arguments.scale)
        print(f"{name}: done", file=sys.stderr, flush=True)
    print(table(rows))
    if failed(rows):
        print(f"\nWhat failed is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
