import io
import re

from rich.console import Console

from nmstep.cli import progress, study_bars
from nmstep.experiments import Outcome, Status

DONE = Outcome(result={"metric": "accuracy", "final": {"accuracy": 98.5, "loss": 0.08}})
LONG = "cifar10-decaying-mask-1x16-1d0d4b-s0"


def shown(monkeypatch, use, *, terminal=True):
    """Returns what is shown last, at 80 columns."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None, _environ={})
    for module in (progress, study_bars):
        monkeypatch.setattr(module, "errors", console)
    with study_bars.StudyBars("fig4", [f"run-{i}" for i in range(120)] + [LONG, "plan.json"]) as bars:
        use(bars)
        bars.bars.refresh()
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
        return text.replace("\r", "\n"), bars.bars.tasks


def test_active_runs_and_one_total_are_shown_of_many(monkeypatch):
    def use(bars):
        for i in range(100):
            bars.ended(f"run-{i}", DONE)  # finished earlier
        for name in ("run-100", "plan.json"):
            bars.started(name, 1, 0)
            bars.ended(name, Outcome() if name == "plan.json" else DONE)
        bars.started(LONG, 78_000, 0)
        status = Status(step=41_234, loss=12.345, phase="dense", z_mean=3.1e-8, threshold=1e-8)
        bars.update(LONG, status)

    text, tasks = shown(monkeypatch, use)
    assert [task.description.strip() for task in tasks] == ["fig4", LONG]
    assert int(tasks[0].completed) == 102
    assert "102.5" in f"{tasks[0].completed:.1f}"
    lines = text.splitlines()
    assert any(LONG in line and "41234/78000" in line and "loss 12.345 dense" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert "accuracy" not in text


def test_a_failure_leaves_a_line(monkeypatch):
    def use(bars):
        bars.started("run-7", 10, 0)
        bars.ended("run-7", Outcome(error="NaN"))

    text, tasks = shown(monkeypatch, use)
    assert "run-7" in text
    assert "failed" in text
    assert len(tasks) == 1


def test_a_log_has_a_line_for_each_run_of_now_only(monkeypatch):
    def use(bars):
        bars.ended("run-0", DONE)
        bars.started("run-1", 10, 0)
        bars.ended("run-1", DONE)

    text, _ = shown(monkeypatch, use, terminal=False)
    (line,) = text.splitlines()
    assert line.startswith("run-1 ")
    assert "accuracy 98.50" in line
