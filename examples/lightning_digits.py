"""Digits with Lightning: one callback more than without nmstep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import nmstep
from nmstep.integrations.lightning import SparsityCallback
from nmstep.integrations.trackers import JsonLines
from nmstep.tasks.digits import held_out_digits, normalise_digits, read_digits
from nmstep.tasks.models.digits_cnn import DigitsCNN


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--resume", type=Path, help="a checkpoint of the same settings")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    return parser.parse_args()


class Digits(pl.LightningModule):  # type: ignore[misc]
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.net, self.lr = DigitsCNN(), lr

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        del index
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        del index
        logits = self.net(batch[0])
        self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return nmstep.AdamW(self.parameters(), lr=self.lr)


def loaders() -> tuple[Any, Any]:
    images, labels = read_digits()
    inputs, held_out = normalise_digits(images), held_out_digits(labels)
    train = TensorDataset(inputs[~held_out], labels[~held_out])
    test = TensorDataset(inputs[held_out], labels[held_out])
    return DataLoader(train, 64, shuffle=True), DataLoader(test, 1024)


def main() -> None:
    args = arguments()
    pl.seed_everything(0, verbose=False)
    module = Digits(args.lr)
    plan = nmstep.plan(module, args.pattern, exclude=["net.conv1"])  # which has one input
    switch = nmstep.AutoSwitch(window=max(2, args.steps // 10), clip=(0.1, 0.5))
    recipe = nmstep.STEP(plan, total_steps=args.steps, switch=switch)
    sparsity = SparsityCallback(recipe, trackers=[JsonLines(args.out / "nm_trace.jsonl")])
    # Scores of the dense phase are forgotten at the switch, so the best checkpoint is an N:M one.
    best = ModelCheckpoint(
        args.out, monitor="accuracy", mode="max", filename="best", enable_version_counter=False
    )
    trainer = pl.Trainer(
        max_steps=args.steps, callbacks=[sparsity, best], logger=False, default_root_dir=args.out
    )
    trainer.fit(module, *loaders(), ckpt_path=args.resume)
    assert sparsity.sparsifier is not None
    sparsity.sparsifier.finalize()
    report = nmstep.verify(best.best_model_path)
    print(sparsity.sparsifier)
    print(f"{best.best_model_path}: accuracy {float(best.best_model_score or 0):.3f}, N:M {report.ok}")
    torch.save(module.net.state_dict(), args.out / "final.pt")


if __name__ == "__main__":
    main()
