"""A small training whose steps can be captured, for the tests of captured steps."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import nmstep
from emulated_graph import Emulator, Graph
from nmstep import AdamW, sparsify

SWITCH = nmstep.AutoSwitch(window=3, clip=(0.05, 0.2))
RECIPES: dict[str, nmstep.Recipe] = {
    "step": nmstep.STEP("2:4", 20, switch=SWITCH),
    "step, narrow": nmstep.STEP("2:4", 20, switch=SWITCH, preconditioner_dtype=torch.bfloat16),
    "step, updated": nmstep.STEP("1:4", switch=nmstep.SwitchAt(5), freeze_variance=False),
    "sr-ste": nmstep.SRSTE("1:4", refine=0.1),
    "decaying": nmstep.DecayingMask("1:4", 3, interval=4),
    "dense": nmstep.Dense(),
}


class Training:
    """A net in two parameter groups, on batches from a static tensor, with a learning rate that is one."""

    def __init__(self, recipe: nmstep.Recipe | None, *, on_nonfinite: Any = "raise", **kwargs: Any) -> None:
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8))
        self.lr = torch.tensor(1e-2)
        weights = [p for p in self.model.parameters() if p.dim() > 1]
        biases = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        self.optimizer = AdamW(groups, **{"lr": self.lr, "capturable": True, "betas": (0.8, 0.9), **kwargs})
        self.sparsifier = None
        if recipe is not None:
            trace = nmstep.TraceOptions(variance_every=3, layers_every=0)
            self.sparsifier = sparsify(
                self.model, self.optimizer, recipe, trace=trace, on_nonfinite=on_nonfinite
            )
        self.x = torch.zeros(12, 16)
        self.loss = torch.zeros(())
        self.step = self.replays = self.captures = 0

    def iteration(self) -> None:
        self.optimizer.zero_grad()
        self.loss = (self.model(self.x) - 1).square().mean()
        self.loss.backward()
        self.optimizer.step()

    def next_batch(self) -> None:
        self.step += 1
        self.x.copy_(torch.randn(12, 16, generator=torch.Generator().manual_seed(self.step)))
        if isinstance(self.optimizer.param_groups[0]["lr"], Tensor):
            self.lr.fill_(1e-2 * 0.97**self.step)  # a schedule

    def written(self) -> list[Tensor]:
        state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        return [*self.model.parameters(), *state]

    def capture(self, emulator: Emulator) -> Graph:
        self.captures += 1
        return emulator.capture(self.iteration, self.written())

    def run(self, steps: int, emulator: Emulator | None = None, watch: Any = None) -> Training:
        graph = None
        for _ in range(steps):
            self.next_batch()
            if graph is None or emulator is None:
                self.iteration()
                if emulator is not None and (self.sparsifier is None or self.sparsifier.ready_to_capture):
                    graph = self.capture(emulator)
            else:
                graph.replay()
                self.replays += 1
                if self.sparsifier is not None:
                    self.sparsifier.log_loss(self.loss)
                    with watch or nullcontext():
                        graph = None if self.sparsifier.replayed() else graph
        return self

    def tensors(self) -> dict[str, Tensor]:
        found = {name: p.detach() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p].items()
            found |= {f"{name} {key}": value for key, value in state if isinstance(value, Tensor)}
        return found


def rows(training: Training) -> list[dict[str, Any]]:
    assert training.sparsifier is not None
    return [{k: v for k, v in row.items() if k != "loss"} for row in training.sparsifier.trace.rows()]


def check_equal(ours: Training, theirs: Training) -> None:
    mine, other = ours.tensors(), theirs.tensors()
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name


def made(recipe: str | None, **kwargs: Any) -> Training:
    return Training(None if recipe is None else RECIPES[recipe], **kwargs).run(2)
