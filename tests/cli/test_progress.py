import io

from rich.console import Console

from nmstep.cli import progress
from nmstep.experiments import Outcome, Status


def bar_text(monkeypatch, width, use):
    """Returns what a terminal of this width shows last."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, _environ={})
    monkeypatch.setattr(progress, "errors", console)
    use()
    return console.file.getvalue().replace("\r", "\n")


def test_a_bar_of_a_long_run_fits_80_columns(monkeypatch):
    def use():
        with progress.TrainBar() as bar:
            bar.start(78_000, 0)
            bar.update(Status(step=41_234, loss=12.3456, phase="dense", z_mean=3.1e-8, threshold=1e-8))

    text = bar_text(monkeypatch, 80, use)
    assert "41234/78000" in text
    assert "loss 12.346 dense Z 3.1e-08 > 1e-08" in text
    assert "…" not in text


def test_finished_runs_become_lines(monkeypatch):
    result = {"metric": "accuracy", "final": {"accuracy": 98.5, "loss": 0.08}}

    def use():
        with progress.CompareBars(["a-s0", "b-s0"]) as bars:
            bars.started("a-s0", 10, 0)
            bars.update("a-s0", Status(step=5, loss=0.5, phase="sparse"))
            bars.bars.refresh()
            bars.ended("a-s0", Outcome(result=result))
            bars.ended("b-s0", Outcome(error="out of luck"))

    text = bar_text(monkeypatch, 80, use)
    assert "5/10" in text
    assert "a-s0  accuracy 98.50  test loss 0.0800" in text
    assert "b-s0  failed" in text


def test_without_a_terminal_there_are_sparse_lines(capsys):
    with progress.TrainBar() as bar:
        bar.start(100, 0)
        for step in range(1, 101):
            bar.update(Status(step=step, loss=0.5, phase="sparse"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 1/100 loss 0.500 sparse", "step 100/100 loss 0.500 sparse"]


def test_a_bar_of_measurements_says_what_is_next(monkeypatch):
    def use():
        with progress.BenchBar() as bar:
            bar.tell("dense bf16: file and memory", 26)
            bar.tell("break-even of 3072x768x3x3 1:16", 26)
            bar.bars.refresh()

    text = bar_text(monkeypatch, 80, use)
    assert "loading the model" in text
    assert "break-even of 3072x768x3x3 1:16" in text
    assert "1/26" in text
    assert "…" not in text


def test_measurements_without_a_terminal_are_sparse_lines(capsys):
    with progress.BenchBar() as bar:
        for place in range(5):
            bar.tell(f"part {place}", 5)
    assert capsys.readouterr().err.splitlines() == ["0/5 part 0"]
