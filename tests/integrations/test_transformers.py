"""transformers' Trainer: nothing changes before the masks, everything saved after them is N:M, resume is exact."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import integrated
import nmstep

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from trained import arguments, lines, trainer  # noqa: E402

from nmstep.integrations.transformers import SparseOptimizer, SparsityCallback, optimizer_for  # noqa: E402

pytestmark = pytest.mark.usefixtures("little_to_collect", "quiet_trainer")


def test_before_the_masks_training_is_the_trainers_own_to_the_bit(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path / "a", recipe=nmstep.Dense(), save_strategy="no")
    made.train()
    args = arguments(tmp_path / "b", save_strategy="no", optim="adamw_torch")
    plain = transformers.Trainer(integrated.tiny_bert(), args, train_dataset=integrated.examples())
    plain.train()
    assert integrated.same(made.model, plain.model)


def test_each_checkpoint_after_the_switch_is_sparse_and_says_so(tmp_path: Path) -> None:
    made, callback = trainer(tmp_path)
    made.train()
    assert callback.sparsifier is not None
    assert (callback.sparsifier.step, callback.sparsifier.switch_step) == (12, 5)
    found = {step: tmp_path / f"checkpoint-{step}" for step in (4, 8, 12)}
    assert [integrated.is_sparse(folder) for folder in found.values()] == [False, True, True]
    assert "nm_sparsity" not in json.loads((found[4] / "config.json").read_text())
    for step in (8, 12):
        entries = json.loads((found[step] / "config.json").read_text())["nm_sparsity"]["entries"]
        assert sum(entry["pattern"] == "2:4" for entry in entries) == 6
        assert nmstep.verify(found[step]).ok
    again = transformers.AutoModelForSequenceClassification.from_pretrained(found[12])
    assert integrated.same(again, made.model)
    made.save_model(str(tmp_path / "mine"))  # not the Trainer's own doing: the model's configuration has it
    assert nmstep.verify(tmp_path / "mine").ok


def test_the_switch_is_marked_in_the_logs_and_the_trace_is_written(tmp_path: Path) -> None:
    made, callback = trainer(tmp_path)
    callback.log_with(made)
    made.train()
    marks = [entry for entry in made.state.log_history if "nm_switch_reason" in entry]
    assert [(m["step"], m["nm_switch_step"], m["nm_switch_reason"]) for m in marks] == [(5, 5, "scheduled")]
    saved = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    assert marks[0] in saved
    assert [(line["step"], line["nm/sparse"]) for line in lines(tmp_path)] == [
        (step, float(step > 5)) for step in range(1, 13)
    ]
    assert [line["step"] for line in lines(tmp_path) if "nm/switch_step" in line] == [5]
    logged = [entry for entry in made.state.log_history if "nm_sparse" in entry]
    assert [(e["step"], e["nm_sparse"]) for e in logged] == [(3, 0.0), (6, 1.0), (9, 1.0), (12, 1.0)]
    assert [e["step"] for e in logged if "nm_switch_step" in e] == [6]
    assert [e["step"] for e in made.state.log_history if "loss" in e] == [3, 6, 9, 12]


@pytest.mark.parametrize("step", [4, 8])
def test_resume_is_exact_before_and_after_the_switch(tmp_path: Path, step: int) -> None:
    whole, _ = trainer(tmp_path / "whole")
    whole.train()
    made, callback = trainer(tmp_path / "whole")
    made.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert callback.sparsifier is not None
    assert callback.sparsifier.switch_step == 5
    assert integrated.same(made.model, whole.model)
    assert [line["step"] for line in lines(tmp_path / "whole")] == list(range(1, 13))
    assert [line["step"] for line in lines(tmp_path / "whole") if "nm/switch_step" in line] == [5]


@pytest.mark.parametrize("saved", ["weights alone", "a dense run"])
def test_a_resume_that_loses_the_recipe_is_told(tmp_path: Path, saved: str) -> None:
    recipe = nmstep.Dense() if saved == "a dense run" else None
    made, _ = trainer(tmp_path, recipe=recipe, save_only_model=saved == "weights alone")
    made.train()
    again, _ = trainer(tmp_path)
    if saved == "a dense run":  # whose optimizer nmstep has never seen
        path = tmp_path / "checkpoint-8" / "optimizer.pt"
        state = torch.load(path)
        state["state"][0].pop("nmstep")
        torch.save(state, path)
    with pytest.warns(UserWarning, match="goes on from step 8, but .* STEP begins anew and counts from 0"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    made, callback = trainer(
        tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=2, save_steps=6
    )
    made.train()
    assert callback.sparsifier is not None
    assert (callback.sparsifier.step, callback.sparsifier.switch_step) == (12, 5)
    assert integrated.is_sparse(tmp_path / "checkpoint-6")


def test_a_schedule_that_tightens_is_named_as_far_as_it_is(tmp_path: Path) -> None:
    model = integrated.tiny_bert()
    plan = nmstep.plan(model, "1:4", include=["bert.encoder"])
    recipe = nmstep.DecayingMask(plan, dense_steps=2, interval=4)  # 3:4, then 2:4, then 1:4
    made, _ = trainer(tmp_path, recipe=recipe)
    made.train()
    named = {}
    for step in (4, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        entries = json.loads((folder / "config.json").read_text())["nm_sparsity"]["entries"]
        (named[step],) = {entry["pattern"] for entry in entries} - {None}
        assert integrated.is_sparse(folder, n=int(named[step][0]))
    assert list(named.values()) == ["3:4", "2:4", "1:4"]


def test_a_dense_models_score_is_no_mark_for_sparse_ones(tmp_path: Path) -> None:
    class Worse(SparsityCallback):
        """Scores that only get worse, so that the first of those that compete is the best."""

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["metrics"]["eval_loss"] = float(state.global_step)

    made, _ = trainer(
        tmp_path,
        callback=Worse(),
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-8")
    assert all(
        integrated.most_kept(p) <= 2
        for n, p in made.model.named_parameters()
        if n in integrated.encoder_weights(tmp_path / "checkpoint-12")
    )


def test_a_checkpoint_that_is_not_sparse_stops_the_run(tmp_path: Path) -> None:
    class Meddler(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "model.safetensors"
            tensors = load_file(file)
            tensors["bert.encoder.layer.0.attention.self.query.weight"][3, 4:8] = 1.0
            save_file(tensors, file)

    made, callback = trainer(tmp_path)
    made.remove_callback(callback)
    made.add_callback(Meddler())
    made.add_callback(callback)
    with pytest.raises(nmstep.NotSparseError, match=r"query.weight.*\[3, 4:8\]"):
        made.train()
    assert made.state.global_step == 8


def test_checkpoints_are_trusted_where_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmstep.integrations.transformers.mark_folder", None)
    made, _ = trainer(tmp_path, callback=SparsityCallback(verify_checkpoints=False))
    made.train()
    assert nmstep.verify(tmp_path / "checkpoint-8").ok  # the model's configuration has the entry all the same


def test_a_model_left_dense_is_an_error_at_the_end(tmp_path: Path) -> None:
    class Meddler(transformers.TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.bert.encoder.layer[0].output.dense.weight.data.fill_(1.0)

    made, callback = trainer(tmp_path, save_strategy="no")
    made.remove_callback(callback)
    made.add_callback(Meddler())
    made.add_callback(callback)
    with pytest.raises(nmstep.NotSparseError, match=r"layer.0.output.dense.weight"):
        made.train()


def test_the_callback_without_its_optimizer(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    made = transformers.Trainer(
        integrated.tiny_bert(), args, train_dataset=integrated.examples(), callbacks=[SparsityCallback()]
    )
    with pytest.raises(
        ValueError, match=r"SparsityCallback found no sparsifier .* \(AdamW\): give the Trainer"
    ):
        made.train()


def test_an_optimizer_of_ones_own_by_the_other_door(tmp_path: Path) -> None:
    model = integrated.tiny_bert()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    sparsifier = nmstep.sparsify(model, optimizer, integrated.recipe(model))
    callback = SparsityCallback()
    made = transformers.Trainer(
        model,
        arguments(tmp_path),
        train_dataset=integrated.examples(),
        optimizers=(optimizer, None),
        callbacks=[callback],
    )
    made.train()
    assert callback.sparsifier is sparsifier
    assert integrated.is_sparse(tmp_path / "checkpoint-8")
    with pytest.raises(TypeError, match="AcceleratedOptimizer around AdamW"):
        nmstep.sparsify(model, made.optimizer, integrated.recipe(model))


def test_other_optimizers_get_the_settings_that_they_know(tmp_path: Path) -> None:
    recipe = nmstep.SRSTE("2:4")
    args = arguments(tmp_path, adam_beta1=0.8)
    _, adam = optimizer_for(args, recipe, optimizer=torch.optim.RAdam)
    assert (adam["lr"], adam["betas"]) == (1e-2, (0.8, 0.999))
    factory, sgd = optimizer_for(args, recipe, optimizer=torch.optim.SGD, momentum=0.9)
    assert "betas" not in sgd
    model = integrated.tiny_bert()
    made = factory()(model, **sgd)
    assert isinstance(made, torch.optim.SGD)
    assert made.param_groups[0]["momentum"] == 0.9
    assert not isinstance(SparseOptimizer, torch.optim.Optimizer)


def test_a_model_that_the_trainer_makes_itself(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_steps=12)
    callback = SparsityCallback()
    made = transformers.Trainer(
        model_init=integrated.tiny_bert,
        args=args,
        train_dataset=integrated.examples(),
        optimizer_cls_and_kwargs=optimizer_for(args, integrated.recipe(integrated.tiny_bert())),
        callbacks=[callback],
    )
    made.train()
    assert integrated.is_sparse(tmp_path / "checkpoint-12")


def test_what_decays_is_what_the_trainer_lets_decay(tmp_path: Path) -> None:
    model = integrated.tiny_bert()
    model.bert.pooler.requires_grad_(False)
    optimizer = SparseOptimizer()(model, recipe=integrated.recipe(model), lr=1.0, weight_decay=0.5)
    theirs = transformers.Trainer(model, arguments(tmp_path)).create_optimizer()
    names = {id(p): name for name, p in model.named_parameters()}
    ours, others = (
        [{names[id(p)] for p in group["params"]} for group in o.param_groups] for o in (optimizer, theirs)
    )
    assert ours == others
    assert not any("pooler" in name for group in ours for name in group)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "nmstep.integrations.transformers")
    with pytest.raises(ImportError, match=r"transformers is needed for the Trainer .*'nmstep\[hf\]'"):
        import nmstep.integrations.transformers  # noqa: F401
