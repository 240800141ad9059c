import json
import re
from pathlib import Path

import pytest
import torch

from nmstep.bench import Footprint, Measured, MeasuredLayer
from nmstep.cli import bench_actions
from nmstep.cli.bench_tables import break_even_table, footprint_table, layer_table, model_table
from nmstep.cli.console import output
from nmstep.cli.main import main
from nmstep.deploy.speed import ROWS, LayerSpeed, Rung, Speed
from nmstep.kernels import break_even
from nmstep.patterns import NMPattern
from nmstep.timing import Timing

FAST = ["--rounds", "3", "--seconds", "0.001", "--threads", "1", "--no-memory"]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def timing(ratio, packed_ms=1.0, spread=1.0):
    return Timing(ratio=ratio, low=ratio, high=ratio * spread, ms=ratio * packed_ms, other_ms=packed_ms)


def layer(rows=ROWS, ratio=12.345, dense_from=None, shape=(512, 512, 3, 3)):
    speed = LayerSpeed(
        fp32=timing(ratio, 1234.5),
        bf16=timing(0.5, 1234.5),
        names=("a", "b"),
        shape=shape,
        pattern=NMPattern(2, 4),
        inputs=(1, 4),
    )
    rungs = [Rung(rows=count, fp32=timing(ratio), bf16=timing(1.5 if count < 40 else 0.5)) for count in rows]
    return MeasuredLayer(speed=speed, rungs=rungs, dense_from=dense_from)


def shown(table):
    """Returns a table's lines as an 80-column terminal shows them, none of them cut."""
    with output.capture() as capture:
        output.print(table)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in capture.get()
    return [" ".join(line.split()) for line in lines]


def test_a_run_is_measured(nmstep, small, tmp_path):
    assert nmstep("train", "--recipe", "ste", "--out", "r", *small)[0] == 0
    status, out, err = nmstep("bench", "r", "--batches", "1", "3", *FAST, "--out", "b.json")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "r: 3 layers 1:16" in out
    assert "With 3 examples " in out
    assert "0/" in err
    figures = json.loads((tmp_path / "b.json").read_text())
    assert [row["examples"] for row in figures["model"]] == [1, 3]
    names = sorted(name for row in figures["layers"] for name in row["names"])
    assert names == ["conv2", "conv3", "head"]
    assert all(row["fp32"]["ratio"] > 0 and row["bf16"]["ms"] > 0 for row in figures["layers"])
    head = next(row for row in figures["layers"] if row["names"] == ["head"])
    assert (head["dense_from"], head["rungs"]) == (0, [])  # the dense layer, however many rows
    assert "1:16, runs dense" in out
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_has_a_place_of_its_own(nmstep, small, tmp_path):
    assert nmstep("train", "--recipe", "ste", "--out", "r", *small)[0] == 0
    status, out, _ = nmstep("bench", "r", "--batches", "1", *FAST, "--plot", "speed.svg")
    assert status == 0
    assert "Plot: speed.svg" in out
    assert "<svg" in (tmp_path / "speed.svg").read_text()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "2"], "--rounds is at least 3"),
        (["--batches", "0"], "--batches are at least 1"),
        (["--seconds", "0"], "--seconds 0.0: expected more than 0"),
        (["--out", "no/b.json"], "cannot write 'no/b.json': there is no folder 'no'"),
        (["--plot", "no/b.png"], "cannot write 'no/b.png': there is no folder 'no'"),
        (["--plot", "b.txt"], "cannot draw into 'b.txt': expected .png, .svg or .pdf"),
        ([], "there is no 'resnet'"),
    ],
)
def test_wrong_usage_is_found_before_anything_is_measured(flags, message, nmstep):
    status, _, err = nmstep("bench", "resnet", *flags)
    assert status == 2
    assert message in err


@pytest.mark.parametrize(("spread", "told"), [(1.6, True), (1.4, False)])
def test_an_unsteady_machine_is_told(spread, told, nmstep, monkeypatch, small):
    speeds = {1: Speed(fp32=timing(2), bf16=timing(1.5, spread=spread))}
    footprints = {name: Footprint(file=1, loaded=1, used=1) for name in ("dense", "dense bf16", "packed")}
    measured = Measured(speeds=speeds, layers=[layer()], footprints=footprints, decoded=None)
    monkeypatch.setattr(bench_actions, "measure", lambda *_, **__: measured)
    assert nmstep("train", "--recipe", "ste", "--out", "r", *small)[0] == 0
    status, out, err = nmstep("bench", "r")
    assert status == 0
    assert "With 1 example packed wins: 1.50 x dense bf16, 2.00 x dense fp32." in out
    assert ("differ by 1.6 times: something else keeps this machine busy" in err) == told


def test_times_and_tokens_have_the_fastest_marked():
    speeds = {16: Speed(fp32=timing(2, 10000.0), bf16=timing(0.5, 10000.0))}
    assert "16 20000 5000* 10000 2.00 0.50" in shown(
        model_table(Measured(speeds=speeds, layers=[], footprints={}, decoded=None))
    )
    # 16 examples of 500 tokens each in 20, 5 and 10 seconds
    lines = shown(model_table(Measured(speeds=speeds, layers=[], footprints={}, decoded=500)))
    assert "16 400 1600* 800 2.00 0.50" in lines
    assert "examples dense tok/s bf16 tok/s packed tok/s x dense x bf16" in lines
    assert "512x512x3x3 2:4 2 15240 617* 1234 12.35 0.50" in shown(layer_table([layer()], 1))


@pytest.mark.parametrize(
    ("dense_from", "choice"),
    [(None, "packed"), (0, "dense"), (1, "dense from 1 row"), (1024, "dense from 1024 rows")],
)
def test_the_break_even_says_what_wins_and_what_the_layer_chose(dense_from, choice):
    lines = shown(break_even_table([layer(dense_from=dense_from)]))
    assert "512x512x3x3 fp32 12.3 12.3 12.3 12.3 12.3 12.3 all" in lines
    assert f"2:4, {choice} bf16 1.5 1.5 1.5 0.5 0.5 0.5 1-16" in lines


def test_a_convolution_stands_under_the_nearest_number_of_rows():
    lines = shown(break_even_table([layer(rows=(49, 196), ratio=2)]))
    header = next(line for line in lines if line.startswith("weight"))
    assert header.split()[-8:] == ["1", "4", "16", "64", "256", "1024", "wins", "at"]
    assert "512x512x3x3 fp32 2 2 all" in lines
    assert "2:4, packed bf16 0.5 0.5 none" in lines
    with output.capture() as capture:
        output.print(break_even_table([layer(rows=(49, 196), ratio=2)]))
    raw = capture.get().splitlines()
    place = next(line for line in raw if "weight" in line).index("64")
    assert next(line for line in raw if "fp32" in line)[place + 1] == "2"


def test_files_and_memory_where_they_are_known():
    footprints = {
        "dense": Footprint(file=2_000_000, loaded=10, used=3_000_000),
        "dense bf16": Footprint(file=1_000_000, loaded=-5, used=2_000_000),
        "packed": Footprint(file=500_000, loaded=None, used=None),
    }
    lines = shown(footprint_table(footprints))
    assert "dense fp32 2.0 MB 100.0 % +10 bytes +3.0 MB" in lines
    assert "dense bf16 1.0 MB 50.0 % +0 bytes +2.0 MB" in lines
    assert "packed 500.0 kB 25.0 % unknown unknown" in lines


def test_training_ends_with_the_speed_of_what_it_packed(monkeypatch, tmp_path):
    torch.manual_seed(0)
    monkeypatch.setattr(break_even, "_SMALL", 100)
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "train",
                "--recipe",
                "ste",
                "--pattern",
                "1:4",
                "--steps",
                "2",
                "--exclude",
                "conv1",
                "--out",
                "r",
            ]
        )
        == 0
    )
    found = bench_actions.quick_verdict(Path("r/packed.safetensors"))
    assert re.fullmatch(r"With 1 example .* wins.*: \d+\.\d\d x .*, \d+\.\d\d x .*\.", found)
