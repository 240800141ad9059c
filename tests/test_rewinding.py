"""An earlier checkpoint loaded into a sparsifier that has gone on: the trace goes back with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import nn

import nmstep
from nmstep import STEP, AdamW, Sparsifier, SwitchAt, TraceOptions, sparsify
from nmstep.integrations.trackers import Feed, JsonLines
from tiny import net, steps


def run() -> tuple[nn.Module, AdamW, Sparsifier]:
    model = net()
    optimizer = AdamW(model.parameters())
    options = TraceOptions(variance_every=1, layers_every=2)
    return model, optimizer, sparsify(model, optimizer, STEP("2:4", switch=SwitchAt(3)), trace=options)


def state(model: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def load(saved: dict[str, Any], model: nn.Module, optimizer: AdamW) -> None:
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])


def without_loss(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "loss"} for row in rows]


def test_the_trace_of_a_run_set_back_is_that_of_one_that_never_was() -> None:
    straight, own, expected = run()
    steps(straight, own, 9)
    model, optimizer, sparsifier = run()
    steps(model, optimizer, 5)
    saved = state(model, optimizer)
    steps(model, optimizer, 4, first=50)  # other batches, whose rows are to go
    load(saved, model, optimizer)
    assert [row["step"] for row in sparsifier.trace.rows()] == [1, 2, 3, 4, 5]
    steps(model, optimizer, 4, first=5)
    assert without_loss(sparsifier.trace.rows()) == without_loss(expected.trace.rows())
    assert sparsifier.trace.layers == expected.trace.layers
    assert [layer["step"] for layer in expected.trace.layers[::2]] == [4, 6, 8]


def test_a_state_of_the_same_step_takes_nothing() -> None:
    model, optimizer, sparsifier = run()
    steps(model, optimizer, 5)
    before = sparsifier.trace.rows()
    load(state(model, optimizer), model, optimizer)
    assert sparsifier.trace.rows() == before


def test_a_tracker_starts_once_more_from_there(tmp_path: Path) -> None:
    model, optimizer, sparsifier = run()
    feed = Feed(sparsifier, [JsonLines(tmp_path / "log.jsonl")])
    steps(model, optimizer, 2)
    saved = state(model, optimizer)
    feed.flush()
    steps(model, optimizer, 4, first=50)
    feed.flush()
    load(saved, model, optimizer)
    steps(model, optimizer, 6, first=2)  # beyond where it was, before anybody looks
    feed.finish()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in lines if "nm/switch_step" in line] == [3]
    rows = {row["step"]: row["v_norm1"] for row in sparsifier.trace.rows()}
    assert all(line.get("nm/v_norm1") == rows[line["step"]] for line in lines)


def test_what_nobody_had_read_is_no_reason_to_start_anew() -> None:
    starts: list[int] = []

    class Notes:
        def start(self, settings: Any, *, step: int) -> None:
            del settings
            starts.append(step)

        def log(self, step: int, values: Any) -> None:
            pass

        def finish(self) -> None:
            pass

    model, optimizer, sparsifier = run()
    feed = Feed(sparsifier, [Notes()])
    steps(model, optimizer, 2)
    feed.flush()
    saved = state(model, optimizer)
    steps(model, optimizer, 2, first=2)
    load(saved, model, optimizer)
    feed.flush()
    assert starts == [0]
    assert nmstep.verify(model, "2:4").ok is False
