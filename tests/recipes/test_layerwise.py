"""DominoSearch: its rules by hand, its targets, its errors, and what recipes make of its plan."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmstep
from nmstep import NMPattern, PlanEntry, Rule, SparsityPlan
from nmstep.recipes.layer_search import Layer, Settings, group_magnitudes, thresholds
from nmstep.recipes.layerwise import TargetNotReachedError, dominosearch
from nmstep.verify import verify


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * 4, 8),
        nn.Linear(8, 8),
    )


def small_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 8, 2, 2, generator=generator), torch.tensor([0, 1, 2, 3])) for _ in range(2)]


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def search(model: nn.Module | None = None, **changes: Any) -> SparsityPlan:
    quick = {"m": 8, "target": 0.7, "lr": 0.1, "penalty": 0.2, "double_penalty_after": 50, "max_steps": 600}
    quick |= {"double_penalty_every": 20, "regularize_every": 1, "check_every": 2}
    return dominosearch(model or small_model(), small_batches(), loss_fn, **{**quick, **changes})


@pytest.fixture(scope="module")
def found() -> SparsityPlan:
    return search()


def parameter_sparsity(plan: SparsityPlan) -> float:
    planned = [e for e in plan.entries if "dominosearch" in e.reason]
    kept = sum(e.numel * (1.0 if e.pattern is None else e.pattern.n / e.pattern.m) for e in planned)
    return 1 - kept / sum(e.numel for e in planned)


def test_reaches_the_parameter_target_with_powers_of_two(found: SparsityPlan) -> None:
    assert parameter_sparsity(found) >= 0.699
    assert all(e.pattern is not None and e.pattern.n in (1, 2, 4) and e.pattern.m == 8 for e in found.sparse)
    assert all(e.reason == f"dominosearch: n={e.pattern and e.pattern.n} of 8" for e in found.sparse)
    assert [e.reason for e in found.entries if e.name.endswith("bias")] == ["bias"] * 3


def test_one_layer_at_most_passes_the_target(found: SparsityPlan) -> None:
    # The last layer that became sparser was needed: one less sparse, and the target is missed.
    def halved(entry: PlanEntry) -> PlanEntry:
        assert entry.pattern is not None
        return replace(entry, pattern=NMPattern(entry.pattern.n * 2, 8))

    one_less = [
        SparsityPlan(tuple(halved(e) if e.name == sparse.name else e for e in found.entries))
        for sparse in found.sparse
    ]
    assert min(map(parameter_sparsity, one_less)) < 0.699


def test_reaches_the_flop_target() -> None:
    plan = search(by="flops")
    # A 3x3 convolution on 2x2 pictures uses each of its 1,152 weights 4 times an example, the others once.
    uses = {"0.weight": 4 * 1152, "4.weight": 512, "5.weight": 64}
    densities = {
        e.name: 1.0 if e.pattern is None else e.pattern.density for e in plan.entries if e.name in uses
    }
    assert 1 - sum(uses[k] * densities[k] for k in uses) / sum(uses.values()) >= 0.699


def test_is_deterministic_and_leaves_model_and_generator_alone(found: SparsityPlan) -> None:
    model = small_model().eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert search(model) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_plan_survives_saving(found: SparsityPlan, tmp_path: Path) -> None:
    found.save(tmp_path / "plan.json")
    assert SparsityPlan.load(tmp_path / "plan.json") == found


@pytest.mark.parametrize(
    "recipe",
    [
        lambda plan: nmstep.SRSTE(plan, refine=5e-4),
        lambda plan: nmstep.STEP(plan, total_steps=10),
        lambda plan: nmstep.STE(plan),
        lambda plan: nmstep.ASP(plan),
        lambda plan: nmstep.DecayingMask(plan, interval=2),
    ],
    ids=["SRSTE", "STEP", "STE", "ASP", "DecayingMask"],
)
def test_every_recipe_takes_the_plan(recipe: Callable[[SparsityPlan], nmstep.Recipe]) -> None:
    plan = search(target=0.4)
    patterns = {e.pattern for e in plan.entries if "dominosearch" in e.reason}
    assert None in patterns  # a layer still at n = M is left dense, and recipes must take that too
    assert len(patterns) > 1
    model = small_model()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-3)
    sparsifier = nmstep.sparsify(model, optimizer, recipe(plan))
    for step in range(10):
        loss_fn(model, small_batches()[step % 2]).backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.finalize()
    verify(model, plan=plan).raise_if_failed()


# -- the rules, by hand ---------------------------------------------------------------------------


def layer(weight: Tensor, n: int, m: int, dim: int = 1) -> Layer:
    entry = PlanEntry(
        name="w", shape=tuple(weight.shape), kind="Linear", pattern=NMPattern(m, m), dim=dim, pad=True
    )
    return Layer(entry=entry, weight=weight, products=1.0, threshold=thresholds(weight, entry), n=n)


def test_groups_follow_the_dimension_and_pad_with_zeros() -> None:
    weight = torch.arange(1.0, 13.0).reshape(6, 2)
    entry = PlanEntry(name="w", shape=(6, 2), kind="Conv1D", pattern=NMPattern(4, 4), dim=0, pad=True)
    expected = torch.tensor([[1.0, 3, 5, 7], [9, 11, 0, 0], [2, 4, 6, 8], [10, 12, 0, 0]])
    assert torch.equal(group_magnitudes(-weight, entry), expected)
    assert torch.equal(thresholds(weight, entry), torch.tensor([[2.0], [0.0], [3.0], [0.0]]))


def test_a_layer_is_redundant_where_the_quorum_has_fewer_than_n_above() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(4, 1)  # thresholds 1.5: three weights above
    assert layer(weight, n=4, m=4).is_redundant(0.75)
    state = layer(weight, n=3, m=4)
    assert not state.is_redundant(0.75)
    state.weight = weight.clone()
    state.weight[:3, 1] = 0.5  # thresholds stay at 1.5: in three of four groups two weights are above
    assert state.is_redundant(0.75)
    assert not state.is_redundant(0.76)


def test_n_stops_at_one_and_the_pattern_follows_at_powers_of_two() -> None:
    state = layer(torch.ones(1, 12), n=12, m=12)
    changes = {}
    while state.n > 1:
        if state.decrement():
            changes[state.n] = str(state.pattern)
    assert changes == {8: "8:12", 4: "4:12", 2: "2:12", 1: "1:12"}
    state.weight = torch.zeros(1, 12)
    assert not state.is_redundant(0.75)


def test_penalty_doubles_six_times_as_published() -> None:
    settings = Settings(
        m=16, target=0.8, by="parameters", lr=0.01, penalty=0.1, double_penalty_after=30_000,
        double_penalty_every=10_000, regularize_every=5, check_every=100, quorum=0.75, max_steps=100_000,
    )  # fmt: skip
    steps = (1, 29_999, 30_000, 39_999, 40_000, 80_000, 99_999)
    assert [settings.penalty_at(s) / 0.1 for s in steps] == [1, 1, 2, 2, 4, 64, 64]


def test_steps_agree_with_a_plain_loop() -> None:
    """One layer, written out: top-n masks, no gradient to pruned weights, the pull every second step."""
    torch.manual_seed(0)
    model = nn.Linear(8, 2, bias=False).double()
    x = torch.randn(4, 8, dtype=torch.float64)
    w = model.weight.detach().clone()
    groups = w.abs().sort(dim=1).values
    threshold = groups[:, :4].mean(1, keepdim=True)
    n = pattern = 8
    history = []
    for step in range(1, 400):
        kept = torch.zeros_like(w).scatter_(1, w.abs().topk(pattern, dim=1).indices, 1)
        run = (w * kept).requires_grad_()
        F.linear(x, run).square().mean().backward()
        assert run.grad is not None
        # A single layer: FLOP share 1, ERK share the sign of what is missing (0.75 of zeros wanted).
        factor = 0.5 * (1 if 1 - pattern / 8 < 0.75 else 0) + 0.5
        gradient = run.grad * kept + (0.3 * factor * w * kept if step % 2 == 0 else 0)
        w = w - 0.1 * gradient
        if step % 3 == 0 and n > 1 and ((w.abs() > threshold).sum(1) < n).double().mean() >= 0.75:
            n -= 1
            if n in (4, 2, 1):
                pattern = n
                history.append((step, n))
        if pattern == 2:
            break
    assert [n for _, n in history] == [4, 2]
    arguments: dict[str, Any] = {
        "m": 8, "target": 0.75, "lr": 0.1, "penalty": 0.3, "regularize_every": 2, "check_every": 3,
    }  # fmt: skip

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch).square().mean()

    last = history[-1][0]
    assert str(dominosearch(model, [x], loss, max_steps=last, **arguments).sparse[0].pattern) == "2:8"
    with pytest.raises(TargetNotReachedError, match=r"weight: n=4 of 8 \(50.0% sparse\)"):
        dominosearch(model, [x], loss, max_steps=last - 1, **arguments)


# -- rules ----------------------------------------------------------------------------------------


def test_rules_fix_or_free_a_layer() -> None:
    plan = search(rules={"4": "1:4", "5": None}, target=0.5)
    by_name = {e.name: e for e in plan.entries}
    assert (str(by_name["4.weight"].pattern), by_name["4.weight"].reason) == ("1:4", "rule '4'")
    assert by_name["5.weight"].pattern is None
    assert by_name["0.weight"].reason.startswith("dominosearch")


def test_a_bare_parameter_is_searched_along_the_dimension_of_its_rule() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    plan = dominosearch(
        Bare(), [torch.ones(2, 8)], lambda net, x: net(x).square().mean(), m=4, target=0.5, lr=0.2,
        penalty=0.5, check_every=2, max_steps=500, rules={"w": Rule("4:4", dim=0)},
    )  # fmt: skip
    assert [(str(e.pattern), e.dim, e.reason) for e in plan.sparse] == [("2:4", 0, "dominosearch: n=2 of 4")]


# -- errors ---------------------------------------------------------------------------------------


def test_a_target_that_is_not_reached_says_what_was() -> None:
    with pytest.raises(TargetNotReachedError) as caught:
        search(max_steps=3)
    text = str(caught.value)
    assert "did not reach target=0.7 in max_steps=3, it reached 0.00% by parameters overall" in text
    assert "0.weight: n=8 of 8 (0.0% sparse)" in text
    assert "raise max_steps" in text
    assert isinstance(caught.value.plan, SparsityPlan)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"target": 0.88}, r"target=0.88, m=8\): expected a sparsity above 0.001 and up to 0.875"),
        ({"target": 0.0}, "expected a sparsity above 0.001"),
        ({"target": float("nan")}, "expected a sparsity above 0.001"),
        ({"m": 1}, r"m=1\): expected an integer >= 2"),
        ({"m": 8.0}, r"m=8.0\): expected an integer >= 2"),
        ({"by": "weights"}, "expected 'parameters' or 'flops'"),
        ({"lr": 0.0}, r"lr=0.0\): expected a finite number above 0"),
        ({"penalty": float("inf")}, r"penalty=inf\): expected a finite number above 0"),
        ({"quorum": 1.5}, r"quorum=1.5\): expected a share"),
        ({"check_every": 0}, r"check_every=0\): expected an integer >= 1"),
        ({"regularize_every": 0}, r"regularize_every=0\)"),
        ({"double_penalty_every": 0}, r"double_penalty_every=0\)"),
        ({"double_penalty_after": -1}, r"double_penalty_after=-1\): expected an integer >= 0"),
        ({"max_steps": True}, r"max_steps=True\)"),
        ({"exclude": ["fc9"]}, "exclude names 'fc9'"),
        (
            {"rules": {"0": "8:16"}, "on_indivisible": "pad"},
            "out of reach: with 1:8 in every layer that no rule",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        search(**change)


def test_batches_and_losses_that_cannot_work() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"batches ended after 0 batch\(es\)"):
        dominosearch(model, [], loss_fn, m=8)
    with pytest.raises(ValueError, match=r"ended after 2 batch\(es\).*not a generator"):
        dominosearch(model, (batch for batch in small_batches()), loss_fn, m=8)
    with pytest.raises(ValueError, match=r"scalar tensor, got a tensor of shape \(4, 8\)"):
        dominosearch(model, small_batches(), lambda net, batch: net(batch[0]), m=8)
    with pytest.raises(ValueError, match="the loss is nan at step 1 of the search"):
        dominosearch(model, small_batches(), lambda net, batch: loss_fn(net, batch) * float("nan"), m=8)
    with pytest.raises(ValueError, match="ran none of the planned layers"):
        dominosearch(model, small_batches(), lambda _net, batch: batch[0].sum(), m=8, by="flops")
