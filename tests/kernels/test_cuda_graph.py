"""Steps captured in a real CUDA graph; the CPU plays one in test_capture.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nmstep
from nmstep import AdamW, sparsify

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU; played on the CPU elsewhere"
)


def trained(recipe: nmstep.Recipe, *, captures: bool) -> tuple[nn.Module, nmstep.Sparsifier, int]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32)).cuda()
    lr = torch.tensor(1e-2, device="cuda")
    optimizer = AdamW(model.parameters(), lr=lr, betas=(0.8, 0.9), capturable=True)
    sparsifier = sparsify(model, optimizer, recipe)
    x = torch.zeros(16, 64, device="cuda")

    def iteration() -> None:
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()

    graph, replays, side = None, 0, torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for step in range(1, 31):
            x.copy_(torch.randn(16, 64, generator=torch.Generator().manual_seed(step)))
            lr.fill_(1e-2 * 0.97**step)
            if graph is not None:
                graph.replay()
                replays += 1
                graph = None if sparsifier.replayed() else graph
                continue
            iteration()
            if captures and sparsifier.ready_to_capture:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side):
                    iteration()
    torch.cuda.synchronize()
    return model, sparsifier, replays


@pytest.mark.parametrize("name", ["step", "sr-ste", "decaying"])
def test_replays_are_ordinary_steps(name: str) -> None:
    from capturable import RECIPES

    (eager, theirs, _), (replayed, mine, replays) = (
        trained(RECIPES[name], captures=c) for c in (False, True)
    )
    assert replays > 15
    assert (mine.step, mine.switch_step) == (30, theirs.switch_step)
    for p, q in zip(replayed.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    nmstep.verify(replayed, "1:4" if name != "step" else "2:4").raise_if_failed()
    rows = [[row["z"] for row in s.trace.rows()] for s in (mine, theirs)]
    assert [z is None for z in rows[0]] == [z is None for z in rows[1]]
