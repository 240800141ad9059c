"""What the Trainer's callback says in the model's config: made anew where patterns change, not at each step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

pytest.importorskip("transformers")

from transformers import PretrainedConfig

import nmstep
from nmstep.integrations import transformers as integration
from tiny import net, steps


def test_the_entry_is_made_where_patterns_change(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    whole = integration.plan_in_force

    def counted(sparsifier: nmstep.Sparsifier) -> Any:
        made.append(sparsifier.step)
        return whole(sparsifier)

    monkeypatch.setattr(integration, "plan_in_force", counted)
    model = net()
    model.config = PretrainedConfig()
    optimizer = nmstep.AdamW(model.parameters())
    callback = integration.SparsityCallback()
    recipe = nmstep.DecayingMask("2:8", dense_steps=2, interval=3)
    callback.sparsifier = nmstep.sparsify(model, optimizer, recipe)
    state: Any = SimpleNamespace(log_history=[], epoch=0, global_step=0)
    seen = []
    for step in range(12):
        steps(model, optimizer, 1, first=step)
        callback.on_step_end(None, state, None, model=model)
        seen.append(kept(model))
    assert seen == [None, *["7:8"] * 3, *["4:8"] * 3, *["2:8"] * 5]
    assert made == [2, 5, 8]


def kept(model: nn.Module) -> Any:
    """Returns the pattern in the config's entry, None where there is none."""
    entry = getattr(model.config, "nm_sparsity", None)
    return None if entry is None else entry["entries"][0]["pattern"]


def test_another_model_gets_its_own_entry(tmp_path: Any) -> None:
    """A callback that is used for two trainings in a row."""
    callback = integration.SparsityCallback()
    state = SimpleNamespace(is_world_process_zero=False, log_history=[], global_step=0)
    for _ in range(2):
        model = net()
        model.config = PretrainedConfig()
        optimizer = nmstep.AdamW(model.parameters())
        nmstep.sparsify(model, optimizer, nmstep.STE("2:4"))
        arguments: Any = SimpleNamespace(output_dir=tmp_path)
        callback.on_train_begin(arguments, state, None, model=model, optimizer=optimizer)
        assert kept(model) == "2:4"
