"""Trackers: every recorded step once, the switch once, and nothing twice after a resume."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nmstep
import tiny
from nmstep.integrations.trackers import Feed, JsonLines, TensorBoard, Tracker


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, settings: Mapping[str, Any], *, step: int) -> None:
        self.calls.append(("start", dict(settings), step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(values)))

    def finish(self) -> None:
        self.calls.append(("finish",))

    @property
    def logged(self) -> dict[int, dict[str, float]]:
        found: dict[int, dict[str, float]] = {}
        for call in self.calls:
            if call[0] == "log":
                found.setdefault(call[1], {}).update(call[2])
        return found


def setting(switch: int = 3) -> tuple[nn.Module, nmstep.AdamW, nmstep.Sparsifier]:
    model = tiny.net()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    recipe = nmstep.STEP("2:4", total_steps=20, switch=nmstep.SwitchAt(switch))
    trace = nmstep.TraceOptions(variance_every=1, layers_every=4)
    return model, optimizer, nmstep.sparsify(model, optimizer, recipe, trace=trace)


def test_every_step_and_the_switch_are_told_once() -> None:
    model, optimizer, sparsifier = setting()
    tracker = Kept()
    feed = Feed(sparsifier, [tracker], {"name": "first"})
    assert isinstance(tracker, Tracker)
    assert tracker.calls[0] == ("start", {"recipe": "STEP", "threshold": None, "name": "first"}, 0)
    tiny.steps(model, optimizer, 2)
    feed.flush()
    feed.flush()
    tiny.steps(model, optimizer, 6, first=2)
    newest = feed.flush()
    feed.finish()
    assert tracker.calls[-1] == ("finish",)
    assert [call[1] for call in tracker.calls if call[0] == "log"] == list(range(1, 9))
    assert {s: v["nm/sparse"] for s, v in tracker.logged.items()} == {s: float(s > 3) for s in range(1, 9)}
    assert {s: v["nm/switch_step"] for s, v in tracker.logged.items() if "nm/switch_step" in v} == {3: 3.0}
    assert tracker.logged[1]["nm/lr"] == 1e-2
    assert newest["nm/sparse"] == 1.0


def test_variance_and_layers_are_those_of_the_trace() -> None:
    model, optimizer, sparsifier = setting()
    tracker = Kept()
    feed = Feed(sparsifier, [tracker])
    tiny.steps(model, optimizer, 8)
    feed.finish()
    # The first step's variance is (1 - beta2) g², told from torch's own Adam.
    twin, other = tiny.net(), None
    other = torch.optim.Adam(twin.parameters(), lr=1e-2)
    tiny.steps(twin, other, 1)
    moments = torch.cat([other.state[p]["exp_avg_sq"].flatten() for p in twin.parameters()])
    assert tracker.logged[1]["nm/v_norm1"] == pytest.approx(float(moments.sum()), rel=1e-6)
    assert tracker.logged[1]["nm/z"] == pytest.approx(float(moments.mean()), rel=1e-6)
    layers = {s: v for s, v in tracker.logged.items() if "nm/density/0.weight" in v}
    assert sorted(layers) == [4, 8]
    assert layers[8]["nm/density/0.weight"] == layers[8]["nm/density"] == 0.5
    rates = [layers[8]["nm/flip_rate/0.weight"], layers[8]["nm/flip_rate/2.weight"]]
    assert layers[8]["nm/flip_rate"] == pytest.approx(sum(rates) / 2)


def test_a_state_that_is_loaded_meanwhile_takes_back_what_came_after_it(tmp_path: Path) -> None:
    model, optimizer, sparsifier = setting()
    undisturbed = Feed(sparsifier, [JsonLines(tmp_path / "whole.jsonl")])
    tiny.steps(model, optimizer, 8)
    undisturbed.finish()

    model, optimizer, sparsifier = setting()
    tracker = Kept()
    feed = Feed(sparsifier, [tracker, JsonLines(tmp_path / "back.jsonl")])
    tiny.steps(model, optimizer, 2)
    saved = json_safe((model.state_dict(), optimizer.state_dict()))
    tiny.steps(model, optimizer, 4, first=2)  # over the switch
    feed.flush()
    tiny.steps(model, optimizer, 1, first=6)  # recorded, not told yet
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    tiny.steps(model, optimizer, 6, first=2)
    feed.finish()
    assert (tmp_path / "back.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert [row["step"] for row in sparsifier.trace.rows()] == list(range(1, 9))
    assert [sample["step"] for sample in sparsifier.trace.layers] == [4, 4, 8, 8]
    assert [call[0] for call in tracker.calls if call[0] != "log"] == ["start", "finish", "start", "finish"]
    assert [call[2] for call in tracker.calls if call[0] == "start"] == [0, 2]


def test_values_of_ones_own_follow_what_was_recorded(tmp_path: Path) -> None:
    model, optimizer, sparsifier = setting()
    tracker = Kept()
    feed = Feed(sparsifier, [tracker, JsonLines(tmp_path / "a.jsonl")])
    tiny.steps(model, optimizer, 2)
    feed.log({"eval/accuracy": 0.5})
    tiny.steps(model, optimizer, 1, first=2)
    feed.finish()
    feed.finish()
    assert [call[1] for call in tracker.calls if call[0] == "log"] == [1, 2, 2, 3]
    assert ("log", 2, {"eval/accuracy": 0.5}) in tracker.calls
    assert tracker.calls.count(("finish",)) == 1
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert written[2] == {"step": 2, "eval/accuracy": 0.5}


def test_a_tracker_that_can_is_told_to_write() -> None:
    class Flushed(Kept):
        def flush(self) -> None:
            self.calls.append(("flush",))

    model, optimizer, sparsifier = setting()
    tracker = Flushed()
    feed = Feed(sparsifier, [tracker])
    tiny.steps(model, optimizer, 1)
    feed.flush()
    assert [call[0] for call in tracker.calls] == ["start", "log", "flush"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.start({}, step=0)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot save: .*a\.jsonl"):
        lines.log(1, {"nm/z": 1.0})


def test_a_recipe_that_starts_masked_tells_so_at_its_first_step() -> None:
    model = tiny.net()
    optimizer = nmstep.AdamW(model.parameters())
    tracker = Kept()
    feed = Feed(nmstep.sparsify(model, optimizer, nmstep.SRSTE("2:4")), [tracker])
    tiny.steps(model, optimizer, 2)
    feed.finish()
    assert {s: v["nm/switch_step"] for s, v in tracker.logged.items() if "nm/switch_step" in v} == {1: 0.0}


def test_lines_of_a_resumed_run_are_those_of_an_undisturbed_one(tmp_path: Path) -> None:
    model, optimizer, sparsifier = setting()
    whole = Feed(sparsifier, [JsonLines(tmp_path / "a" / "whole.jsonl")])
    tiny.steps(model, optimizer, 8)
    whole.finish()

    model, optimizer, sparsifier = setting()
    feed = Feed(sparsifier, [JsonLines(tmp_path / "cut.jsonl")])
    tiny.steps(model, optimizer, 4)
    saved = (model.state_dict(), optimizer.state_dict())
    saved = tuple(json_safe(state) for state in saved)
    tiny.steps(model, optimizer, 2, first=4)
    feed.flush()  # and killed, in the middle of a line
    with (tmp_path / "cut.jsonl").open("a") as file:
        file.write('{"step": 7, "nm/')

    model, optimizer, sparsifier = setting()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    feed = Feed(sparsifier, [JsonLines(tmp_path / "cut.jsonl")])
    tiny.steps(model, optimizer, 4, first=4)
    feed.finish()
    assert (tmp_path / "cut.jsonl").read_text() == (tmp_path / "a" / "whole.jsonl").read_text()
    lines = [json.loads(line) for line in (tmp_path / "cut.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))


def json_safe(state: Any) -> Any:
    """A copy that later steps do not write to."""
    import copy

    return copy.deepcopy(state)


def test_a_run_from_the_start_starts_its_file_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n')
    JsonLines(tmp_path / "a.jsonl").start({}, step=0)
    assert (tmp_path / "a.jsonl").read_text() == ""


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns what TensorBoard itself reads."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model, optimizer, sparsifier = setting()
    feed = Feed(sparsifier, [TensorBoard(tmp_path, every=4)])
    tiny.steps(model, optimizer, 9)
    feed.finish()
    found = points(tmp_path)
    assert found["nm/sparse"] == [(4, 1.0), (8, 1.0)]
    assert found["nm/switch_step"] == [(3, 3.0)]
    assert found["nm/density/0.weight"] == [(4, 0.5), (8, 0.5)]


def test_tensorboard_hides_what_a_cut_off_run_wrote_later(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first, second = TensorBoard(tmp_path), TensorBoard(tmp_path)
    first.start({}, step=0)
    for step in range(1, 7):
        first.log(step, {"nm/z": 1.0})
    first.finish()
    second.start({}, step=4)
    second.log(5, {"nm/z": 2.0})
    second.finish()
    assert points(tmp_path)["nm/z"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]


def test_tensorboard_hides_all_of_a_run_that_begins_anew(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first, second = TensorBoard(tmp_path), TensorBoard(tmp_path, every=5)
    first.start({}, step=0)
    for step in range(1, 4):
        first.log(step, {"nm/z": 1.0})
    first.flush()
    first.finish()
    second.start({}, step=0)
    second.log(3, {"nm/z": 2.0, "eval/accuracy": 0.5})  # of one's own, so at any step
    second.log(5, {"nm/z": 2.0})
    second.finish()
    found = points(tmp_path)
    assert found["nm/z"] == [(5, 2.0)]
    assert found["eval/accuracy"] == [(3, 0.5)]


def test_what_cannot_be() -> None:
    _, _, sparsifier = setting()
    with pytest.raises(TypeError, match=r"methods start, log and finish.*got 'wandb'"):
        Feed(sparsifier, ["wandb"])  # type: ignore[list-item]
    with pytest.raises(
        TypeError, match=r"Feed takes the Sparsifier that nmstep.sparsify returned .* got a AdamW"
    ):
        Feed(setting()[1], [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"TensorBoard\(every=0\): expected an integer >= 1"):
        TensorBoard("folder", every=0)


def test_without_tensorboard_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'nmstep\[tensorboard\]'"):
        TensorBoard("folder")
