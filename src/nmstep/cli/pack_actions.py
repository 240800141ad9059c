"""What ``nmstep pack`` does: writes a packed file of a checkpoint, and says what became of it."""

from __future__ import annotations

from pathlib import Path

from nmstep.cli import commands
from nmstep.cli.bench_actions import dtype_of
from nmstep.cli.console import output, say
from nmstep.cli.sources import plan_in_zeros, refuse_dense
from nmstep.cli.tables import int8_line, packed_size, packed_table
from nmstep.deploy import pack_file

__all__ = ["pack_checkpoint", "pack_run"]


def pack_run(folder: Path) -> str:
    """Packs what a run trained, and returns where it is and how large."""
    packed = pack_file(folder, folder / "packed.safetensors")
    return f"Packed: {packed.path}, {packed_size(packed)}"


def pack_checkpoint(command: commands.Pack) -> int:
    """Packs a checkpoint, shows its layers and returns the exit status."""
    refuse_dense(command.path, "pack")
    folder = command.path if command.path.is_dir() else command.path.parent
    out = command.out or folder / "packed.safetensors"
    packed = pack_file(command.path, out, plan=plan_in_zeros(command.path), dtype=dtype_of(command.dtype))
    output.print(packed_table(packed))
    if command.dtype == "int8":
        say(int8_line(packed))
    rounded = f", rounded to {command.dtype}" if command.dtype is not None else ""
    say(f"Packed: {packed.path}")
    say(f"Read back: its weights are those of the checkpoint{rounded}")
    return 0
