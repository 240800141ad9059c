"""Lightning's callbacks that save before a fit, or replace the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import integrated
import nmstep

pl = pytest.importorskip("lightning.pytorch")

import test_lightning  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

from nmstep.integrations.lightning import SparsityCallback  # noqa: E402

pytestmark = [*test_lightning.pytestmark, pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")]


class Net(test_lightning.Net):
    """Has the learning rate where Lightning's finder looks for it."""

    lr = 1e-2

    def train_dataloader(self) -> Any:
        return test_lightning.DataLoader(test_lightning.data(), batch_size=8)


def fit(folder: Path, *callbacks: Any, epochs: int = 2, resume: str | None = None) -> Net:
    module = Net()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, ckpt_path=resume)
    return module


def test_a_search_for_the_learning_rate_saves_before_there_is_a_sparsifier(tmp_path: Path) -> None:
    callback = SparsityCallback(test_lightning.step_recipe())
    module = fit(tmp_path, callback, LearningRateFinder(num_training_steps=4), ModelCheckpoint(tmp_path))
    assert callback.sparsifier is not None
    assert (callback.sparsifier.step, callback.sparsifier.switch_step) == (16, 6)
    assert integrated.most_kept(module.net[0].weight) == 2


@pytest.mark.parametrize("average", [WeightAveraging, lambda: StochasticWeightAveraging(1e-2, 1)])
def test_what_replaces_the_weights_must_come_first(tmp_path: Path, average: Any) -> None:
    callback = SparsityCallback(nmstep.SRSTE("2:4"))
    with pytest.raises(ValueError, match=r"after (Stochastic)?WeightAveraging in the trainer's callbacks"):
        fit(tmp_path, callback, average())


def test_averages_of_masks_that_change_are_not_saved_as_sparse(tmp_path: Path) -> None:
    callbacks = [WeightAveraging(), SparsityCallback(nmstep.SRSTE("2:4")), ModelCheckpoint(tmp_path)]
    with pytest.raises(nmstep.NotSparseError):
        fit(tmp_path, *callbacks)
    assert not list(tmp_path.glob("*.ckpt"))


def test_nor_left_in_the_model(tmp_path: Path) -> None:
    with pytest.raises(nmstep.NotSparseError):
        fit(
            tmp_path,
            StochasticWeightAveraging(1e-2, 1),
            SparsityCallback(nmstep.SRSTE("2:4")),
            ModelCheckpoint(tmp_path, every_n_epochs=9),
            epochs=3,
        )


def test_averages_of_a_mask_that_stays_are_sparse(tmp_path: Path) -> None:
    module = fit(
        tmp_path,
        WeightAveraging(),
        SparsityCallback(nmstep.ASP("2:4")),
        ModelCheckpoint(tmp_path, save_last=True),
    )
    assert integrated.most_kept(module.net[0].weight) == 2
    assert nmstep.verify(tmp_path / "last.ckpt").ok


def test_a_resume_that_loses_the_recipe_is_told(tmp_path: Path) -> None:
    fit(tmp_path, ModelCheckpoint(tmp_path, save_last=True), epochs=1)
    with pytest.warns(UserWarning, match="goes on from step 8, but .* STEP begins anew and counts from 0"):
        fit(
            tmp_path,
            SparsityCallback(test_lightning.step_recipe()),
            ModelCheckpoint(tmp_path),
            resume=str(tmp_path / "last.ckpt"),
        )
