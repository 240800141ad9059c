"""The compiled step against plain torch's: one unit in the last place, and the same masks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep import AdamW, kernels, masks, sparsify
from one_step import GROUP, RECIPES, SETTINGS, check_sparse_step, net, reference_step, step_, train

pytestmark = pytest.mark.usefixtures("variant")


@pytest.mark.parametrize(("changes", "frozen"), SETTINGS)
@pytest.mark.parametrize("shape", [(3,), (17, 33), (70, 1000)])
def test_a_dense_step_is_adams(changes: dict[str, Any], frozen: float | None, shape: tuple[int, ...]) -> None:
    group = {**GROUP, **changes}
    torch.manual_seed(0)
    p, m, v = torch.randn(shape), torch.randn(shape) / 10, torch.rand(shape) + 0.1
    exact = [x.double() for x in (p, m, v)]
    for t in range(1, 6):
        g = torch.randn(shape)
        before = v.double()
        sums = step_(group, p, g, m, v, step=t, frozen_eps_root=frozen, sums=True)
        reference_step(exact[0], g.double(), exact[1], exact[2], t, group, frozen)
        expected = ((v.double() - before).abs().sum(), v.double().sum(), v.double().square().sum())
        assert sums == pytest.approx([float(x) for x in expected], rel=1e-4, abs=1e-12)
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
        w, m, v, g = (torch.randn(shape).to(dtype) for _ in range(4))
        check_sparse_step((w, m, v.abs(), g), pattern, dim, frozen)


def test_steps_of_every_number_of_vectors_and_of_long_rows() -> None:
    torch.manual_seed(5)
    side_by_side = [((1, 4 * groups), 1) for groups in range(1, 17)]
    for pattern, shape, dim in (
        *(("2:4", shape, dim) for shape, dim in side_by_side),
        ("2:4", (5, 4096), 1),  # more than is summed at a time
        ("2:4", (12, 300), 0),  # rows that are read in place, and end within a vector
        ("1:8", (24, 300), 0),
        ("2:4", (8, 20003), 0),  # groups of more values than are worked on at a time
        ("1:16", (32, 5001), 0),
        ("2:4", (6, 8, 7, 7), 1),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            w, m, v, g = (torch.randn(shape).to(dtype) for _ in range(4))
            check_sparse_step((w, m, v.abs(), g), pattern, dim, 1e-8)


def test_sr_stes_term_enters_the_gradient() -> None:
    torch.manual_seed(2)
    w, g = torch.randn(4, 8), torch.randn(4, 8)
    pruned = masks.split_(w, "2:4")
    latent = w + pruned
    cut = kernels.Cut(pruned=pruned.clone(), pattern=nmstep.NMPattern(2, 4), dim=1, refine=0.5)
    moments = [torch.zeros(4, 8) for _ in range(4)]
    step_(GROUP, w, g, moments[0], moments[1], step=1, cut=cut)
    step_(GROUP, latent, g + 0.5 * pruned, moments[2], moments[3], step=1)
    torch.testing.assert_close(moments[0], moments[2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(w + cut.pruned, latent, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_other_strides_is_taken() -> None:
    torch.manual_seed(3)
    p, g = torch.randn(6, 8), torch.randn(8, 6).t()
    q = p.clone()
    moments = [torch.zeros(6, 8) for _ in range(4)]
    step_(GROUP, p, g, moments[0], moments[1], step=1)
    step_(GROUP, q, g.contiguous(), moments[2], moments[3], step=1)
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
            sums = step_(GROUP, p, g, torch.zeros_like(p), v.clone(), step=1, sums=True)
            found.append((p, sums))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(p, found[0][0]) and sums == found[0][1] for p, sums in found)


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
    step_(GROUP, p, g, torch.zeros(2, 4), torch.zeros(2, 4), step=1)
    assert p[0, 1].isnan()
    assert p[1, 2].isnan()  # inf / inf
    assert p.isfinite().sum() == 6


def test_a_gradient_that_is_lazily_negative_steps_the_right_way() -> None:
    def after(fused: bool) -> Tensor:
        p = nn.Parameter(torch.ones(4, 8))
        p.grad = torch._neg_view(torch.ones(4, 8))
        AdamW([p], lr=0.1, fused=fused).step()
        return p.detach()

    torch.testing.assert_close(after(True), after(False))


def test_a_subclass_with_a_step_of_its_own_is_left_to_the_hooks() -> None:
    class Own(AdamW):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            del closure
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.sub_(0.01 * p.grad)

    model = net()
    optimizer = Own(model.parameters())
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    train(model, optimizer, 3)
    nmstep.verify(model, "2:4").raise_if_failed()


def test_a_state_that_another_hook_changes_is_an_error_and_loses_nothing() -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    train(model, optimizer, 2)
    p = model[2].weight

    def transpose(*_: Any) -> None:
        optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].t().contiguous().t()

    handle = optimizer.register_step_pre_hook(transpose)
    before = [q.detach().clone() for q in model.parameters()]
    with pytest.raises(RuntimeError, match="was changed between nmstep's hook"):
        train(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    handle.remove()
    train(model, optimizer, 2)  # by plain torch, since the state lies otherwise now
    nmstep.verify(model, "2:4").raise_if_failed()


def test_a_gradient_that_another_hook_takes_away_leaves_a_mask_of_the_new_pattern() -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.DecayingMask("1:8", 2, interval=2))

    def take(*_: Any) -> None:
        model[2].weight.grad = None

    optimizer.register_step_pre_hook(take)
    train(model, optimizer, 12)
    nmstep.verify(model, "1:8").raise_if_failed()


@pytest.mark.parametrize("recipe", RECIPES)
def test_saving_in_the_middle_of_a_step_does_no_harm(recipe: str) -> None:
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=True)
    optimizer.register_step_post_hook(lambda *_: optimizer.state_dict())  # before nmstep's own
    sparsify(model, optimizer, RECIPES[recipe]())
    train(model, optimizer, 30)


def test_a_weight_that_has_no_gradient_any_more_counts_in_the_norms() -> None:
    norms = []
    for fused in (False, True):
        model = net()
        optimizer = AdamW(model.parameters(), fused=fused)
        sparsifier = sparsify(model, optimizer, nmstep.Dense(), trace=nmstep.TraceOptions(variance_every=1))
        train(model, optimizer, 2)
        model[4].weight.requires_grad_(False)
        model[4].weight.grad = None
        train(model, optimizer, 2)
        norms.append([row["v_norm1"] for row in sparsifier.trace.rows()])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_frozen_variance_does_not_change() -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, nmstep.Dense(), trace=nmstep.TraceOptions(variance_every=1))
    train(model, optimizer, 2)
    optimizer.freeze_variance_()
    train(model, optimizer, 1)
    assert sparsifier.trace.rows()[-1]["z"] == 0.0


@pytest.mark.parametrize("fused", [True, False, None])
def test_a_copy_keeps_the_kind_of_step(fused: bool | None) -> None:
    optimizer = copy.deepcopy(AdamW([nn.Parameter(torch.ones(2))], fused=fused))
    assert optimizer.kernels._fused is fused
    assert "use_kernels" not in optimizer.param_groups[0]


def test_groups_keep_their_own_settings_and_tensors_are_numbers() -> None:
    def after(fused: bool) -> list[Tensor]:
        torch.manual_seed(8)
        params = [nn.Parameter(torch.randn(4, 8)) for _ in range(2)]
        groups = [
            {"params": params[:1], "lr": torch.tensor(0.1)},
            {"params": params[1:], "weight_decay": 0.5},
        ]
        optimizer = AdamW(groups, lr=1e-2, fused=fused, foreach=False)
        for p in params:
            p.grad = torch.randn(4, 1).expand(4, 8)
        optimizer.step()
        return [p.detach() for p in params]

    for p, q in zip(after(True), after(False), strict=True):
        torch.testing.assert_close(p, q)


def test_autograd_knows_of_the_step() -> None:
    p = nn.Parameter(torch.randn(4, 8))
    loss = p.square().sum()
    p.grad = torch.ones(4, 8)
    AdamW([p], fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_both_moments_are_torchs_to_the_bit(variant: str) -> None:
    if variant == "plain":
        pytest.skip("torch itself rounds otherwise without AVX2")
    p, q = (nn.Parameter(torch.linspace(-1, 1, 1003)) for _ in range(2))
    ours, theirs = AdamW([p], fused=True), torch.optim.AdamW([q], foreach=False)
    for seed in range(5):
        torch.manual_seed(seed)
        p.grad = torch.randn(1003)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(ours.state[p][key], theirs.state[q][key])
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("pattern", [None, "2:4", "1:16"])
def test_a_frozen_variance_of_half_a_word_is_read_as_it_is(pattern: str | None) -> None:
    torch.manual_seed(9)
    w, m, v, g = (torch.randn(40, 96) for _ in range(4))
    narrow = v.square_().bfloat16()
    found = []
    for second in (narrow, narrow.float()):
        p, first, cut = w.clone(), m.clone(), None
        if pattern is not None:
            pruned = masks.split_(p, pattern)
            cut = kernels.Cut(pruned=pruned, pattern=nmstep.NMPattern.parse(pattern), dim=1)
        step_(GROUP, p, g, first, second, step=5, frozen_eps_root=1e-8, cut=cut)
        found.append((p, first))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(narrow, v.bfloat16())


def test_a_second_moment_that_is_updated_cannot_be_narrow() -> None:
    p, g, m = (torch.ones(4, 8) for _ in range(3))
    with pytest.raises(ValueError, match="second moment that is updated must have the parameter's type"):
        step_(GROUP, p, g, m, torch.ones(4, 8, dtype=torch.bfloat16), step=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_torchs_own_step_does_to_the_variance_is_foreseen(dtype: torch.dtype) -> None:
    torch.manual_seed(10)
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((5, 7), (1,), (90, 1000))]
    optimizer = AdamW(params, betas=(0.9, 0.95))
    for step in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        before = [optimizer.state[p]["exp_avg_sq"].double() for p in params] if step else []
        held = [p.detach().clone() for p in params]
        foreseen = optimizer.kernels.foresee(optimizer)
        assert all(torch.equal(p, q) for p, q in zip(params, held, strict=True))  # nothing is written
        optimizer.step()
        if not step:
            assert foreseen is None  # there is no state yet
            continue
        assert foreseen is not None
        after = [optimizer.state[p]["exp_avg_sq"].double() for p in params]
        change = sum(float((a - b).abs().sum()) for a, b in zip(after, before, strict=True))
        expected = [change, sum(float(v.sum()) for v in after), sum(float(v.square().sum()) for v in after)]
        assert foreseen.tolist() == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 1e-2)


def test_what_cannot_be_foreseen_is_left_to_torch() -> None:
    for settings in ({"decoupled_weight_decay": False}, {"fused": False}):
        p = nn.Parameter(torch.ones(4))
        optimizer = AdamW([p], **settings)
        p.grad = torch.ones(4)
        optimizer.step()
        assert optimizer.kernels.foresee(optimizer) is None


@pytest.mark.parametrize("fused", [None, True])
def test_a_group_without_gradients_is_left_out(fused: bool | None) -> None:
    model = net()
    groups = [{"params": list(model.parameters())}, {"params": [nn.Parameter(torch.ones(3))]}]
    optimizer = AdamW(groups, fused=fused)
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    train(model, optimizer, 2)
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


def test_norms_are_those_of_the_step_that_was_taken() -> None:
    norms = []
    for fused in (None, False):
        model = net()
        optimizer = AdamW(model.parameters(), fused=fused)
        sparsifier = sparsify(model, optimizer, nmstep.Dense(), trace=nmstep.TraceOptions(variance_every=1))

        def clip(*_: Any, model: nn.Module = model) -> None:
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

        optimizer.register_step_pre_hook(clip)  # after nmstep's own has looked
        train(model, optimizer, 4)
        norms.append([row["v_norm1"] for row in sparsifier.trace.rows()])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_after_the_end_plain_steps_are_torchs_again() -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    sparsifier = sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    train(model, optimizer, 2)
    sparsifier.finalize()
    assert not optimizer.kernels.takes(optimizer)
