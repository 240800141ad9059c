"""Lightning: the callback attaches a recipe in time, resumes to the bit, and lets no dense checkpoint pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import integrated
import nmstep
import tiny

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers.logger import Logger  # noqa: E402

from nmstep.integrations.lightning import SparsityCallback, _forget_best  # noqa: E402
from nmstep.integrations.trackers import JsonLines  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
]


class Net(pl.LightningModule):  # type: ignore[misc, name-defined]
    """The tiny network of the other tests; the loss of its validation is its step, so that it only gets worse."""

    def __init__(self, *, optimizer: Any = None, recipe: Any = None) -> None:
        super().__init__()
        self.net = tiny.net()
        self.make, self.recipe = optimizer or (lambda p: nmstep.AdamW(p, lr=1e-2)), recipe

    def training_step(self, batch: Any, index: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val", float(self.global_step))

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        if self.recipe is not None:
            nmstep.sparsify(self, optimizer, self.recipe)
        return optimizer


class Kept(Logger):
    """A logger that keeps what it is told."""

    name, version = "kept", "0"

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.append((step, metrics))


def step_recipe(switch: int = 6) -> Any:
    return nmstep.STEP("2:4", total_steps=16, switch=nmstep.SwitchAt(switch))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(64, 16, generator=generator), torch.randn(64, 8, generator=generator))


def fit(
    folder: Path,
    callback: Any,
    *,
    steps: int = 16,
    module: Any = None,
    resume: str | None = None,
    early: Any = None,
    **settings: Any,
) -> tuple[Any, Any, Any]:
    """Trains, 8 steps an epoch, and validates after each fourth."""
    module = module or Net()
    best = ModelCheckpoint(folder, monitor="val", filename="best-{step}", save_last=True)
    each = ModelCheckpoint(folder, filename="epoch-{epoch}", save_top_k=-1, every_n_epochs=1)
    trainer = pl.Trainer(
        **{"logger": False, **settings},
        max_steps=steps,
        accelerator="cpu",
        callbacks=[callback, best, each, *([early] if early else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        val_check_interval=4,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(data(), batch_size=8), DataLoader(data(), batch_size=64), ckpt_path=resume)
    return module, best, trainer


def by_hand(steps: int, switch: int = 6) -> nn.Module:
    """The same training in a loop of one's own."""
    model = tiny.net()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    nmstep.sparsify(model, optimizer, step_recipe(switch))
    x, y = data().tensors
    for i in range(steps):
        at = slice(i % 8 * 8, i % 8 * 8 + 8)
        optimizer.zero_grad()
        (model(x[at]) - y[at]).square().mean().backward()
        optimizer.step()
    return model


def test_training_is_that_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    callback = SparsityCallback(step_recipe())
    module, _, _ = fit(tmp_path, callback)
    assert callback.sparsifier is not None
    assert (callback.sparsifier.step, callback.sparsifier.switch_step) == (16, 6)
    assert integrated.same(module.net, by_hand(16))
    assert integrated.most_kept(module.net[0].weight) == 2


def test_checkpoints_are_sparse_and_the_best_is_one_of_them(tmp_path: Path) -> None:
    _, best, _ = fit(tmp_path, SparsityCallback(step_recipe()))
    # Scores get worse with each step: of the dense ones 4 would have stayed the best, of the sparse ones it is 8.
    assert best.best_model_path == str(tmp_path / "best-step=8.ckpt")
    assert best.best_model_score == 8.0
    for name in ("best-step=8.ckpt", "last.ckpt"):
        stored = torch.load(tmp_path / name, weights_only=True)
        assert integrated.most_kept(stored["state_dict"]["net.0.weight"]) == 2
        assert [e["pattern"] for e in stored["nm_sparsity"]["entries"]] == ["2:4", "2:4"]
        assert nmstep.verify(tmp_path / name).ok


def test_a_looser_models_score_is_no_mark_for_tighter_ones(tmp_path: Path) -> None:
    recipe = nmstep.DecayingMask(
        "1:4", dense_steps=2, interval=4
    )  # 3:4 after step 2, 2:4 after 6, 1:4 after 10
    early = EarlyStopping("val", patience=1)
    _, best, trainer = fit(tmp_path, SparsityCallback(recipe), early=early)
    assert best.best_model_score == 12.0
    stored = torch.load(best.best_model_path, weights_only=True)
    assert integrated.most_kept(stored["state_dict"]["net.0.weight"]) == 1
    # Each pattern's first score is the best one yet; of the last pattern the second is worse, and one such stops.
    assert (trainer.global_step, early.best_score, early.wait_count) == (16, 12.0, 1)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_only_what_watches_a_score_is_set_back(mode: str, tmp_path: Path) -> None:
    watched = ModelCheckpoint(tmp_path, monitor="val", mode=mode, save_top_k=1)
    new = ModelCheckpoint(tmp_path, monitor="val", mode=mode, save_top_k=1).state_dict()
    watched.best_k_models, watched.kth_value = {"a": torch.tensor(9.0)}, torch.tensor(9.0)
    watched.best_model_score = watched.current_score = torch.tensor(9.0)
    watched.best_model_path = watched.kth_best_model_path = "a"
    _forget_best(watched)
    assert watched.state_dict() == new
    unwatched = ModelCheckpoint(tmp_path)
    unwatched.best_model_path = "a"
    _forget_best(unwatched)
    assert unwatched.best_model_path == "a"


@pytest.mark.parametrize("switch", [6, 12])
def test_resume_is_exact_before_and_after_the_switch(tmp_path: Path, switch: int) -> None:
    fit(tmp_path, SparsityCallback(step_recipe(switch)), steps=8)  # to the end of an epoch
    callback = SparsityCallback(step_recipe(switch))
    module, _, _ = fit(tmp_path, callback, resume=str(tmp_path / "epoch-epoch=0.ckpt"))
    assert callback.sparsifier is not None
    assert (callback.sparsifier.step, callback.sparsifier.switch_step) == (16, switch)
    assert integrated.same(module.net, by_hand(16, switch))


def test_what_a_cut_off_run_wrote_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    fit(tmp_path, SparsityCallback(step_recipe(12), trackers=[JsonLines(file)]), steps=14)
    assert len(file.read_text().splitlines()) == 14
    callback = SparsityCallback(step_recipe(12), trackers=[JsonLines(file)])
    fit(tmp_path, callback, resume=str(tmp_path / "epoch-epoch=0.ckpt"))
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in found] == list(range(1, 17))
    assert [line["step"] for line in found if "nm/switch_step" in line] == [12]
    assert callback.sparsifier is not None
    assert [row["step"] for row in callback.sparsifier.trace.rows()] == list(range(9, 17))


def test_loggers_hear_of_the_switch_at_once(tmp_path: Path) -> None:
    kept = Kept()
    fit(tmp_path, SparsityCallback(step_recipe()), logger=kept, log_every_n_steps=4)
    ours = [(step, values) for step, values in kept.logged if "nm/sparse" in values]
    assert [(step, values["nm/sparse"]) for step, values in ours] == [
        (4, 0),
        (6, 0),
        (8, 1),
        (12, 1),
        (16, 1),
    ]
    assert [(step, values["nm/switch_step"]) for step, values in ours if "nm/switch_step" in values] == [
        (6, 6)
    ]


def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    callback = SparsityCallback(step_recipe(2))
    fit(tmp_path, callback, steps=4, accumulate_grad_batches=2)
    assert callback.sparsifier is not None
    assert (callback.sparsifier.step, callback.sparsifier.switch_step) == (4, 2)


def test_a_second_fit_goes_on_with_a_new_optimizer(tmp_path: Path) -> None:
    callback = SparsityCallback(nmstep.SRSTE("2:4"))
    module, _, _ = fit(tmp_path, callback, steps=4)
    first = callback.sparsifier
    fit(tmp_path, callback, steps=4, module=module)
    assert callback.sparsifier is not first
    assert integrated.most_kept(module.net[0].weight) == 2


def test_a_sparsifier_of_configure_optimizers_is_taken(tmp_path: Path) -> None:
    callback = SparsityCallback()
    fit(tmp_path, callback, steps=4, module=Net(recipe=nmstep.SRSTE("2:4")))
    assert callback.sparsifier is not None
    assert callback.sparsifier.step == 4


def test_twice_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has a sparsifier already"):
        fit(tmp_path, SparsityCallback(nmstep.SRSTE("2:4")), module=Net(recipe=nmstep.SRSTE("2:4")))
    with pytest.raises(
        ValueError, match=r"SparsityCallback found no sparsifier .* give the callback a recipe"
    ):
        fit(tmp_path, SparsityCallback())
    with pytest.raises(IndexError, match=r"optimizer=1\): this module has 1 optimizer"):
        fit(tmp_path, SparsityCallback(nmstep.SRSTE("2:4"), optimizer=1))
    with pytest.raises(ValueError, match=r"use nmstep\.AdamW"):
        fit(tmp_path, SparsityCallback(step_recipe()), module=Net(optimizer=torch.optim.AdamW))


def test_lightnings_own_wrapper_is_refused(tmp_path: Path) -> None:
    class Late(pl.Callback):  # type: ignore[misc, name-defined]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            nmstep.sparsify(pl_module, pl_module.optimizers(), nmstep.SRSTE("2:4"))

    with pytest.raises(TypeError, match="got LightningAdamW around AdamW"):
        fit(tmp_path, Late())


def test_a_dense_weight_stops_the_save(tmp_path: Path) -> None:
    class Meddler(SparsityCallback):
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"]["net.2.weight"] = torch.ones(8, 32)
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    with pytest.raises(nmstep.NotSparseError, match=r"net.2.weight"):
        fit(tmp_path, Meddler(nmstep.SRSTE("2:4")), steps=4)


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "nmstep.integrations.lightning")
    with pytest.raises(ImportError, match=r"lightning is needed for its callback .*'nmstep\[lightning\]'"):
        import nmstep.integrations.lightning  # noqa: F401
