"""Tables for 80 columns, in which names stay readable."""

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

import nmstep as nm
from nmstep.cli.dotted import broken
from nmstep.cli.tables import packed_table, plan_table, verify_table
from nmstep.deploy import PackedFile
from nmstep.deploy.description import StoredLayer

LONG = "bert.encoder.layer.0.attention.output.dense"


def model():
    net = torch.nn.Module()
    place = net
    for part in LONG.split(".")[:-1]:
        child = torch.nn.Module()
        place.add_module(part, child)
        place = child
    place.add_module("dense", torch.nn.Linear(64, 1024))
    with torch.no_grad():
        place.dense.weight.mul_(nm.nm_mask(place.dense.weight, "2:4"))
    return net


def packed(*left):
    layer = StoredLayer(nm.NMPattern(2, 4), (64, 64), 1)
    return PackedFile(Path("p.safetensors"), 600_000, 1_000_000, {LONG: layer}, left)


def shown(table, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("kind", ["verify", "plan", "pack"])
def test_names_break_after_a_dot_and_read_as_they_are(kind, width):
    net = model()
    table = {
        "verify": lambda: verify_table(nm.verify(net, "2:4")),
        "plan": lambda: plan_table(nm.plan(net, "2:4")),
        "pack": lambda: packed_table(packed()),
    }[kind]()
    lines = shown(table, width)
    assert max(map(len, lines)) <= width
    pieces = [found[1] for line in lines[3:-1] if (found := re.match(r" (\S+)", line))]
    names = "".join(pieces)
    assert LONG in names
    assert all(piece.endswith((".", "dense", "weight", "bias")) for piece in pieces if piece[0].isalpha())


def test_what_is_said_below_a_narrow_table_is_as_wide_as_the_terminal():
    lines = shown(packed_table(packed("a.weight", "b.weight")), 80)
    assert "600.0 kB instead of 1.0 MB (60.0%); 1 weight packed; sparse, and left dense:" in lines[-2]
    assert lines[-1] == "a.weight, b.weight"
    assert "and 2 more" in " ".join(shown(packed_table(packed(*"abcdefg")), 200))


def test_a_part_that_is_longer_than_a_line():
    assert broken("a." + 30 * "b" + ".c", 10) == ["a.", 30 * "b" + ".", "c"]
    assert broken("a = b.c", 3) == ["a = ", "b.c"]
    assert broken("", 5) == [""]
