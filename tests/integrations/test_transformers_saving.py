"""What the Trainer's checkpoints claim: nothing of earlier runs, in shards too; and which one is the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import integrated
import nmstep

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from trained import lines, trainer  # noqa: E402

from nmstep.integrations.accelerate import save  # noqa: E402
from nmstep.integrations.transformers import SparsityCallback  # noqa: E402

pytestmark = pytest.mark.usefixtures("little_to_collect", "quiet_trainer")


def entry(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text()).get("nm_sparsity")


def tightening(dense_steps: int = 2, interval: int = 4) -> Any:
    """3:4, then 2:4, then 1:4."""
    plan = nmstep.plan(integrated.tiny_bert(), "1:4", include=["bert.encoder"])
    return nmstep.DecayingMask(plan, dense_steps=dense_steps, interval=interval)


class Worse(SparsityCallback):
    """Scores that only get worse, so that the first of those that compete is the best."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_loss"] = float(state.global_step)


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
}


def test_a_looser_models_score_is_no_mark_for_tighter_ones(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, callback=Worse(), recipe=tightening(), **BEST)
    made.train()
    patterns = {}
    for step in range(2, 13):
        (patterns[step],) = {e["pattern"] for e in entry(tmp_path / f"checkpoint-{step}")["entries"]} - {None}
    first = min(step for step, pattern in patterns.items() if pattern == "1:4")
    assert set(patterns.values()) == {"3:4", "2:4", "1:4"}
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{first}")
    assert integrated.most_kept(made.model.bert.encoder.layer[0].output.dense.weight) == 1
    marks = [line for line in made.state.log_history if "nm_switch_step" in line]
    assert [line["step"] for line in marks] == [2]


def test_a_resumed_run_keeps_the_best_of_its_own_pattern(tmp_path: Path) -> None:
    recipe = tightening(interval=5)  # 2:4 from step 7 on
    made, _ = trainer(tmp_path, callback=Worse(), recipe=recipe, max_steps=9, **BEST)
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-7")
    again, _ = trainer(tmp_path, callback=Worse(), recipe=recipe, max_steps=11, **BEST)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert again.state.best_model_checkpoint == str(tmp_path / "checkpoint-7")


@pytest.fixture
def stale() -> Any:
    """A model that says of itself what an earlier run left there."""
    model = integrated.tiny_bert()
    model.config.nm_sparsity = nmstep.plan(model, "1:4").to_dict()
    return model


def test_a_dense_checkpoint_does_not_claim_what_an_earlier_run_left(tmp_path: Path, stale: Any) -> None:
    made, _ = trainer(tmp_path, model=stale)
    made.train()
    assert entry(tmp_path / "checkpoint-4") is None
    assert {e["pattern"] for e in entry(tmp_path / "checkpoint-8")["entries"]} == {"2:4", None}
    dense, _ = trainer(tmp_path / "dense", model=stale, recipe=nmstep.Dense())
    dense.train()
    assert entry(tmp_path / "dense" / "checkpoint-12") is None


def test_a_folder_used_again_claims_nothing_either(tmp_path: Path) -> None:
    import torch

    class Plain(torch.nn.Module):
        """No model of transformers: what is in its folder's config.json, nobody but the callback writes."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = integrated.tiny_bert()

        def forward(self, input_ids: Any, labels: Any) -> Any:
            return {"loss": self.bert(input_ids=input_ids, labels=labels).loss}

    for switch, found in ((2, "nm_sparsity"), (5, None)):
        made, _ = trainer(tmp_path, model=Plain(), recipe=nmstep.ASP("2:4", start=switch), max_steps=4)
        made.train()
        config = json.loads((tmp_path / "checkpoint-4" / "config.json").read_text())
        assert list(config) == ([found] if found else [])


def test_accelerate_does_not_save_what_an_earlier_run_left(tmp_path: Path, stale: Any) -> None:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = nmstep.AdamW(stale.parameters())
    sparsifier = nmstep.sparsify(stale, optimizer, integrated.recipe(stale))
    assert not save(accelerator, stale, sparsifier, tmp_path)
    assert entry(tmp_path) is None
    assert not hasattr(stale.config, "nm_sparsity")


def test_a_callback_used_twice_marks_the_second_model_too(tmp_path: Path) -> None:
    callback = SparsityCallback()
    for name in ("first", "second"):
        made, _ = trainer(tmp_path / name, callback=callback, save_steps=12)
        made.train()
        made.model.save_pretrained(tmp_path / name / "own")
        assert nmstep.verify(tmp_path / name / "own").ok
        assert entry(tmp_path / name / "own") is not None


def test_a_trainer_that_goes_back_has_each_step_once(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def start(self, settings: Any, *, step: int) -> None:
            self.steps = [s for s in self.steps if s <= step]

        def log(self, step: int, values: Any) -> None:
            self.steps.append(step)

        def finish(self) -> None:
            pass

    kept = Kept()
    callback = SparsityCallback(trackers=[kept])
    made, _ = trainer(tmp_path, callback=callback)
    made.train()
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # the same Trainer and optimizer again
    assert callback.sparsifier is not None
    assert [row["step"] for row in callback.sparsifier.trace.rows()] == list(range(1, 13))
    assert kept.steps == list(range(1, 13))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))
    assert [line["step"] for line in lines(tmp_path) if "nm/switch_step" in line] == [5]


def test_checkpoints_in_shards_are_verified_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transformers.PreTrainedModel.save_pretrained

    def in_shards(self: Any, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **{**kwargs, "max_shard_size": "4KB"})

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", in_shards)
    made, _ = trainer(tmp_path)
    made.train()
    for step, sparse in ((4, False), (8, True), (12, True)):
        folder = tmp_path / f"checkpoint-{step}"
        shards = sorted(folder.glob("model-*-of-*.safetensors"))
        assert len(shards) > 1
        assert not (folder / "model.safetensors").exists()
        assert (entry(folder) is not None) == sparse
        kept = {
            integrated.most_kept(file.get_tensor(name))
            for file in (safe_open(shard, "pt") for shard in shards)
            for name in file.keys()  # noqa: SIM118 - not a mapping
            if name.startswith(integrated.ENCODER) and file.get_tensor(name).dim() == 2
        }
        assert (max(kept) <= 2) == sparse
        assert not sparse or nmstep.verify(folder).ok
    again, _ = trainer(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert integrated.same(again.model, made.model)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))
