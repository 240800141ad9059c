"""The compiled step against plain torch's: one unit in the last place, and the same masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import AdamW, kernels, masks, sparsify
from nmstep.kernels.native import kernels as compiled

pytestmark = pytest.mark.skipif(compiled() is None, reason=f"no compiled kernels: {kernels.status().why}")
USABLE = [name for name in kernels.status().usable if name != "torch"]


@pytest.fixture(params=USABLE, autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs each test on each instruction set."""
    module = compiled()
    assert module is not None
    before = module.active()
    module.use(request.param)
    yield request.param
    module.use(before)


def reference_step(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, group: dict[str, Any], frozen: float | None
) -> None:
    """Adam in float64 by the formulas of the papers, in place."""
    beta1, beta2 = group["betas"]
    g = -g if group["maximize"] else g
    if group["decoupled_weight_decay"]:
        w.mul_(1 - group["lr"] * group["weight_decay"])
    else:
        g = g + group["weight_decay"] * w
    m.mul_(beta1).add_((1 - beta1) * g)
    if frozen is None:
        v.mul_(beta2).add_((1 - beta2) * g * g)
        root = (v / (1 - beta2**t) + group["eps_root"]).sqrt()
    else:
        root = (v + frozen).sqrt()
    w.sub_(group["lr"] * (m / (1 - beta1**t)) / (root + group["eps"]))


GROUP = {
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "eps_root": 0.0,
    "weight_decay": 0.1,
    "maximize": False,
    "decoupled_weight_decay": True,
}


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({}, None),
        ({"eps_root": 1e-6}, None),
        ({"decoupled_weight_decay": False}, None),
        ({"maximize": True, "weight_decay": 0.0}, None),
        ({"betas": (0.3, 0.5)}, None),
        ({}, 1e-8),
        ({"decoupled_weight_decay": False, "maximize": True}, 1e-3),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (17, 33), (70, 1000)])
def test_a_dense_step_is_adams(changes: dict[str, Any], frozen: float | None, shape: tuple[int, ...]) -> None:
    group = {**GROUP, **changes}
    torch.manual_seed(0)
    p, m, v = torch.randn(shape), torch.randn(shape) / 10, torch.rand(shape) + 0.1
    exact = [x.double() for x in (p, m, v)]
    for t in range(1, 6):
        g = torch.randn(shape)
        before = v.double()
        sums = kernels.adam_step_(group, p, g, m, v, step=t, frozen_eps_root=frozen, sums=frozen is None)
        reference_step(exact[0], g.double(), exact[1], exact[2], t, group, frozen)
        if sums is not None:
            expected = ((v.double() - before).abs().sum(), v.double().sum(), v.double().square().sum())
            assert sums == pytest.approx([float(x) for x in expected], rel=1e-4)
    for ours, theirs in zip((p, m, v), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["2:4", "1:16", "3:7", "1:40"])
@pytest.mark.parametrize("frozen", [None, 1e-8])
def test_a_sparse_step_is_a_dense_one_on_the_latent_weight_and_a_split(
    pattern: str, frozen: float | None, dtype: torch.dtype
) -> None:
    m_size = int(pattern.partition(":")[2])
    torch.manual_seed(1)
    for shape, dim in (
        ((9, 3 * m_size), 1),
        ((2 * m_size, 50), 0),
        ((5, m_size, 3, 3), 1),
        ((4, 2 * m_size + 1), 1),
    ):
        w, m, v = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.rand(shape).to(dtype)
        g = torch.randn(shape).to(dtype)
        latent, m2, v2 = w.clone(), m.clone(), v.clone()
        pruned = masks.split_(w, pattern, dim=dim, pad=True)
        cut = kernels.Cut(pruned=pruned, pattern=nmstep.NMPattern.parse(pattern), dim=dim)
        ours = kernels.adam_step_(GROUP, w, g, m, v, step=3, frozen_eps_root=frozen, cut=cut, sums=True)
        dense = kernels.adam_step_(GROUP, latent, g, m2, v2, step=3, frozen_eps_root=frozen, sums=True)
        assert torch.equal(m, m2)
        assert torch.equal(v, v2)
        assert torch.equal(w + pruned, latent)
        assert torch.equal(pruned, masks.split_(latent, pattern, dim=dim, pad=True))
        assert torch.equal(w, latent)
        assert ours == pytest.approx(dense, rel=1e-5)


def test_sr_stes_term_enters_the_gradient() -> None:
    torch.manual_seed(2)
    w, g = torch.randn(4, 8), torch.randn(4, 8)
    pruned = masks.split_(w, "2:4")
    latent = w + pruned
    cut = kernels.Cut(pruned=pruned.clone(), pattern=nmstep.NMPattern(2, 4), dim=1, refine=0.5)
    moments = [torch.zeros(4, 8) for _ in range(4)]
    kernels.adam_step_(GROUP, w, g, moments[0], moments[1], step=1, cut=cut)
    kernels.adam_step_(GROUP, latent, g + 0.5 * pruned, moments[2], moments[3], step=1)
    torch.testing.assert_close(moments[0], moments[2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(w + cut.pruned, latent, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_other_strides_is_taken() -> None:
    torch.manual_seed(3)
    p, g = torch.randn(6, 8), torch.randn(8, 6).t()
    q = p.clone()
    moments = [torch.zeros(6, 8) for _ in range(4)]
    kernels.adam_step_(GROUP, p, g, moments[0], moments[1], step=1)
    kernels.adam_step_(GROUP, q, g.contiguous(), moments[2], moments[3], step=1)
    assert torch.equal(p, q)


def test_sums_and_weights_do_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(4)
    start = torch.randn(300, 1000)
    g, v = torch.randn_like(start), torch.rand_like(start)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            p = start.clone()
            sums = kernels.adam_step_(GROUP, p, g, torch.zeros_like(p), v.clone(), step=1, sums=True)
            found.append((p, sums))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(p, found[0][0]) and sums == found[0][1] for p, sums in found)


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(6)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 8, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


RECIPES = {
    "step": lambda: nmstep.STEP("2:4", 30, switch=nmstep.AutoSwitch(window=5, clip=(0.1, 0.3))),
    "step, updated": lambda: nmstep.STEP("2:4", 30, switch=nmstep.SwitchAt(5), freeze_variance=False),
    "sr-ste": lambda: nmstep.SRSTE("1:4"),
    "decaying": lambda: nmstep.DecayingMask("1:8", 4, interval=6),
    "asp": lambda: nmstep.ASP("2:4", start=3),
    "dense": nmstep.Dense,
}


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_is_the_same_as_in_plain_torch(recipe: str, fused: bool | None) -> None:
    found = []
    for kind in (False, fused):
        model = net()
        optimizer = AdamW(model.parameters(), lr=1e-3, fused=kind)
        sparsifier = sparsify(model, optimizer, RECIPES[recipe]())
        train(model, optimizer, 30)
        found.append((model, sparsifier))
    (plain, theirs), (ours, mine) = found
    assert mine.switch_step == theirs.switch_step
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p == 0, q == 0)  # the same masks
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    for key in ("v_norm1", "v_norm2", "z"):
        rows = [[row[key] for row in s.trace.rows() if row[key] is not None] for s in (mine, theirs)]
        assert rows[0] == pytest.approx(rows[1], rel=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_recorded_changes_nothing(recipe: str) -> None:
    found = []
    for options in (
        nmstep.TraceOptions(),
        nmstep.TraceOptions(variance_every=1, layers_every=1, geometric=True),
        nmstep.TraceOptions(variance_every=0, layers_every=0),
    ):
        model = net()
        optimizer = AdamW(model.parameters(), lr=1e-3)
        sparsify(model, optimizer, RECIPES[recipe](), trace=options)
        train(model, optimizer, 30)
        found.append(model)
    for model in found[1:]:
        for p, q in zip(model.parameters(), found[0].parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_step_with_one_tensor_that_they_do_not_take_is_plain_torchs() -> None:
    def of(fused: bool | None) -> list[Tensor]:
        torch.manual_seed(7)
        params = [nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(3, dtype=torch.float64))]
        optimizer = AdamW(params, fused=fused)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        return [p.detach() for p in params]

    for p, q in zip(of(True), of(False), strict=True):
        assert torch.equal(p, q)


def test_a_copy_of_the_optimizer_steps_too() -> None:
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    train(model, optimizer, 2)
    other = copy.deepcopy((model, optimizer))
    train(model, optimizer, 3)
    train(*other, 3)
    for p, q in zip(model.parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_values_that_are_not_finite_stay_visible() -> None:
    p, g = torch.ones(2, 4), torch.zeros(2, 4)
    g[0, 1], g[1, 2] = math.nan, math.inf
    kernels.adam_step_(GROUP, p, g, torch.zeros(2, 4), torch.zeros(2, 4), step=1)
    assert p[0, 1].isnan()
    assert p[1, 2].isnan()  # inf / inf
    assert p.isfinite().sum() == 6
