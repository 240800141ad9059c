"""torchao and N:M: train with rounded weights (QAT), convert to int8, still N:M.

With --after, weights are rounded only after training. Digits, a few seconds.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.qat import QATConfig

import nmstep
from nmstep.tasks.digits import held_out_digits, normalise_digits, read_digits


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--after", action="store_true", help="round the weights after training only")
    return parser.parse_args()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).float().mean())


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    images, labels = read_digits()
    inputs, held_out = normalise_digits(images).flatten(1), held_out_digits(labels)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    config = Int8WeightOnlyConfig() if args.after else IntxWeightOnlyConfig(weight_dtype=torch.int8)
    if not args.after:
        # First, since it replaces the layers; the parameters stay the same ones.
        quantize_(model, QATConfig(config, step="prepare"))

    plan = nmstep.plan(model, args.pattern, exclude=["4"])
    optimizer = nmstep.AdamW(model.parameters(), lr=2e-3)
    switch = nmstep.AutoSwitch(window=max(2, args.steps // 10), clip=(0.1, 0.5))
    sparsifier = nmstep.sparsify(model, optimizer, nmstep.STEP(plan, total_steps=args.steps, switch=switch))
    for step in range(args.steps):
        chosen = torch.randint(len(labels), (64,), generator=torch.Generator().manual_seed(step))
        chosen = chosen[~held_out[chosen]]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
    sparsifier.finalize()
    print(sparsifier)
    print(f"trained: accuracy {accuracy(model, inputs[held_out], labels[held_out]):.3f}")

    quantize_(model, config if args.after else QATConfig(config, step="convert"))
    report = nmstep.verify(model, plan=plan)  # by the values that the integers stand for
    print(f"int8: accuracy {accuracy(model, inputs[held_out], labels[held_out]):.3f}, N:M {report.ok}")
    report.raise_if_failed()


if __name__ == "__main__":
    main()
