"""Accelerate: one process and two end alike, and its own checkpoints resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import integrated
import nmstep
import tiny
from nmstep.integrations.accelerate import load_state, prepare, save

accelerate = pytest.importorskip("accelerate")


def start(recipe: Any = None) -> tuple[Any, Any, Any, Any]:
    accelerator = accelerate.Accelerator(cpu=True)
    model = tiny.net()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    recipe = recipe or nmstep.STEP("2:4", total_steps=20, switch=nmstep.SwitchAt(4))
    return (accelerator, *prepare(accelerator, model, optimizer, recipe=recipe))


def test_prepared_training_is_that_of_a_loop_of_ones_own() -> None:
    accelerator, sparsifier, model, optimizer = start()
    tiny.steps(model, optimizer, 8)
    twin = tiny.net()
    other = nmstep.AdamW(twin.parameters(), lr=1e-2)
    nmstep.sparsify(twin, other, nmstep.STEP("2:4", total_steps=20, switch=nmstep.SwitchAt(4)))
    tiny.steps(twin, other, 8)
    assert integrated.same(accelerator.unwrap_model(model), twin)
    assert (sparsifier.step, sparsifier.switch_step) == (8, 4)


@pytest.mark.parametrize("cut", [2, 6])
def test_save_state_and_load_state_resume_to_the_bit(tmp_path: Path, cut: int) -> None:
    _, _, whole, optimizer = start()
    tiny.steps(whole, optimizer, 10)
    accelerator, _, model, optimizer = start()
    tiny.steps(model, optimizer, cut)
    accelerator.save_state(tmp_path)
    accelerator, sparsifier, model, optimizer = start()
    accelerator.load_state(tmp_path)
    assert sparsifier.step == cut
    tiny.steps(model, optimizer, 10 - cut, first=cut)
    assert integrated.same(model, whole)


def test_a_folder_says_that_it_is_sparse_once_it_is(tmp_path: Path) -> None:
    accelerator, sparsifier, model, optimizer = start()
    tiny.steps(model, optimizer, 3)
    assert not save(accelerator, model, sparsifier, tmp_path / "dense")
    assert not (tmp_path / "dense" / "config.json").exists()
    tiny.steps(model, optimizer, 3, first=3)
    assert save(accelerator, model, sparsifier, tmp_path / "sparse")
    assert nmstep.verify(tmp_path / "sparse").ok
    sparsifier.finalize()
    assert save(accelerator, model, sparsifier, tmp_path / "final")
    entries = json.loads((tmp_path / "final" / "config.json").read_text())["nm_sparsity"]["entries"]
    assert [entry["pattern"] for entry in entries] == ["2:4", "2:4"]


def test_a_schedule_on_its_way_is_named_as_far_as_it_is(tmp_path: Path) -> None:
    accelerator, sparsifier, model, optimizer = start(nmstep.DecayingMask("1:4", dense_steps=1, interval=100))
    tiny.steps(model, optimizer, 3)
    assert save(accelerator, model, sparsifier, tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())["nm_sparsity"]["entries"]
    assert [entry["pattern"] for entry in entries] == ["3:4", "3:4"]


def test_a_recipe_without_masks_marks_nothing(tmp_path: Path) -> None:
    accelerator, sparsifier, model, optimizer = start(nmstep.Dense())
    tiny.steps(model, optimizer, 1)
    assert not save(accelerator, model, sparsifier, tmp_path)


def test_weights_written_to_are_found_out(tmp_path: Path) -> None:
    accelerator, sparsifier, model, optimizer = start()
    tiny.steps(model, optimizer, 6)
    model[0].weight.data[1, 4:8] = 1.0
    with pytest.raises(nmstep.NotSparseError, match=r"0.weight.*\[1, 4:8\]"):
        save(accelerator, model, sparsifier, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_where_fsdp2_replaces_the_parameters_the_recipe_comes_after_it() -> None:
    class Replacing:
        """As Accelerate with FSDP2: other parameters in the model, and in the groups of the same optimizer."""

        is_fsdp2 = True

        def prepare(self, model: Any, optimizer: Any) -> Any:
            new = {p: torch.nn.Parameter(p.detach().clone()) for p in model.parameters()}
            model[0].weight, model[2].weight = (new[model[i].weight] for i in (0, 2))
            for group in optimizer.param_groups:
                group["params"] = [new[p] for p in group["params"]]
            return model, accelerate.optimizer.AcceleratedOptimizer(optimizer, device_placement=False)

    model = tiny.net()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    sparsifier, model, optimizer = prepare(Replacing(), model, optimizer, recipe=nmstep.SRSTE("2:4"))
    tiny.steps(model, optimizer, 3)
    assert sparsifier.step == 3
    assert integrated.most_kept(model[0].weight) == 2


def test_save_takes_the_sparsifier(tmp_path: Path) -> None:
    accelerator, _, model, optimizer = start()
    with pytest.raises(TypeError, match=r"save takes the Sparsifier that .* got a AcceleratedOptimizer"):
        save(accelerator, model, optimizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_where_fsdp2_comes_first_it_is_not_begun_with_what_is_refused() -> None:
    class Begun:
        is_fsdp2 = True

        def prepare(self, *others: Any) -> Any:
            raise AssertionError

    _, _, model, optimizer = start()
    with pytest.raises(TypeError, match="got AcceleratedOptimizer around AdamW; call sparsify before"):
        prepare(Begun(), model, optimizer, recipe=nmstep.SRSTE("2:4"))
    with pytest.raises(TypeError, match="got list; pass a wrapper's inner optimizer"):
        prepare(Begun(), model, [], recipe=nmstep.SRSTE("2:4"))


def test_where_fsdp2_is_to_load_there_must_be_something(tmp_path: Path) -> None:
    class Loading:
        is_fsdp2 = True

    _, _, model, optimizer = start()
    with pytest.raises(FileNotFoundError, match=r"optimizer\.bin"):
        load_state(Loading(), model, optimizer, tmp_path)
    plain = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"this AdamW has no sparsifier: call nmstep.sparsify first"):
        load_state(Loading(), model, plain, tmp_path)
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    with pytest.raises(ValueError, match="holds no record of a sparsifier"):
        load_state(Loading(), model, optimizer, tmp_path)


def test_what_is_no_optimizer_is_refused() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(TypeError, match="got list; pass a wrapper's inner optimizer"):
        prepare(accelerator, tiny.net(), [], recipe=nmstep.SRSTE("2:4"))


def test_an_optimizer_that_is_prepared_already_is_refused() -> None:
    accelerator, _, model, optimizer = start()
    twice = accelerate.optimizer.AcceleratedOptimizer(optimizer, device_placement=False)
    with pytest.raises(TypeError, match="got AcceleratedOptimizer around AcceleratedOptimizer"):
        prepare(accelerator, model, twice, recipe=nmstep.SRSTE("2:4"))
    with pytest.raises(TypeError, match="got AcceleratedOptimizer around AdamW; call sparsify before"):
        prepare(accelerator, model, optimizer, recipe=nmstep.SRSTE("2:4"))
    with pytest.raises(ValueError, match="has a sparsifier already"):
        prepare(accelerator, model, optimizer.optimizer, recipe=nmstep.SRSTE("2:4"))
