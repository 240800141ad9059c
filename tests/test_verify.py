"""Verification of modules and state dicts, against literal tensors and a loop over every group."""

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nmstep import NMPattern, PlanEntry, Rule, SparsityPlan, nm_mask
from nmstep import plan as make_plan
from nmstep.verify import NotSparseError, VerifyReport, verify
from nmstep.verify.groups import count_groups

NAN = math.nan


class Conv1D(nn.Module):
    """GPT-2's layer with an (in, out) weight, as transformers spells it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.zeros(nx, nf))


def make_sparse(model: nn.Module, plan: SparsityPlan) -> None:
    with torch.no_grad():
        for name, p in plan.resolve(model).items():
            entry = next(e for e in plan.sparse if e.name == name)
            assert entry.pattern is not None
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            p.mul_(nm_mask(p, entry.pattern, dim=entry.dim or 0, pad=entry.pad))


def one(report: VerifyReport) -> Any:
    (tensor,) = report.checked
    return tensor


# -- groups ---------------------------------------------------------------------------------------


def slow_count(tensor: Tensor, n: int, m: int, dim: int) -> tuple[int, int, tuple[int, ...] | None]:
    """Every group in the order of its first weight, by index arithmetic alone."""
    lines = [range(0, size, m) if d == dim else range(size) for d, size in enumerate(tensor.shape)]
    groups = complying = 0
    first = None
    for start in itertools.product(*lines):
        nonzeros = 0
        for k in range(start[dim], min(start[dim] + m, tensor.shape[dim])):
            value = tensor[(*start[:dim], k, *start[dim + 1 :])].item()
            nonzeros += value != 0  # true of NaN
        groups += 1
        complying += nonzeros <= n
        if nonzeros > n and first is None:
            first = start
    return groups, complying, first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 8), 1), ((8, 3), 0), ((3, 8, 2), 1), ((2, 10), 1), ((5, 4, 2, 2), 0), ((3, 3), 1)]
)
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 7), (4, 4)])
def test_counts_agree_with_a_loop(
    dtype: torch.dtype, shape: tuple[int, ...], dim: int, n: int, m: int
) -> None:
    generator = torch.Generator().manual_seed(n * m + dim)
    for keep in (0.2, 0.5, 0.9):
        tensor = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < keep)
        tensor.flatten()[0] = NAN
        tensor = tensor.to(dtype)
        count = count_groups(tensor, NMPattern(n, m), dim)
        groups, complying, first = slow_count(tensor, n, m, dim)
        assert (count.groups, count.complying) == (groups, complying)
        assert (count.first.index if count.first else None) == first


def test_counts_groups_of_a_view() -> None:
    tensor = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [4.0, 0.0]]).t()
    count = count_groups(tensor, NMPattern(2, 4), 1)
    assert (count.groups, count.complying) == (2, 1)
    assert count.first is not None
    assert (count.first.index, count.first.values) == ((0, 0), (1.0, 2.0, 0.0, 4.0))


# -- modules --------------------------------------------------------------------------------------

LAYERS: list[tuple[Callable[[], nn.Module], tuple[Any, ...], int, str]] = [
    (lambda: nn.Linear(8, 4), (2, slice(4, 8)), 1, "[2, 4:8]"),
    (lambda: nn.Conv2d(8, 4, 3), (1, slice(0, 4), 2, 1), 1, "[1, 0:4, 2, 1]"),
    (lambda: nn.ConvTranspose2d(8, 4, 3), (slice(4, 8), 3, 0, 1), 0, "[4:8, 3, 0, 1]"),
    (lambda: Conv1D(4, 8), (slice(4, 8), 3), 0, "[4:8, 3]"),
]


@pytest.mark.parametrize(
    ("make", "where", "dim", "text"), LAYERS, ids=["Linear", "Conv2d", "ConvTranspose2d", "Conv1D"]
)
def test_one_broken_group_is_found_in_each_layer_kind(
    make: Callable[[], nn.Module], where: tuple[Any, ...], dim: int, text: str
) -> None:
    model = make()
    make_sparse(model, make_plan(model, "2:4"))
    report = verify(model, "2:4")
    assert report.ok
    assert one(report).share == 1.0
    report.raise_if_failed()
    with torch.no_grad():
        model.get_parameter("weight")[where] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    report = verify(model, "2:4")
    tensor = one(report)
    assert not report.ok
    assert (tensor.status, tensor.dim, tensor.groups - tensor.complying) == ("violated", dim, 1)
    assert tensor.first.values == (1.0, 0.0, 2.0, 3.0)
    with pytest.raises(NotSparseError) as caught:
        report.raise_if_failed()
    assert f"first {text} = (1, 0, 2, 3) with 3 non-zeros" in str(caught.value)
    assert f"'weight' (2:4 along dimension {dim})" in str(caught.value)


def test_short_groups_are_allowed_where_the_plan_pads() -> None:
    model = nn.Linear(11, 2, bias=False)
    plan = make_plan(model, "2:4", on_indivisible="pad")
    make_sparse(model, plan)
    assert verify(model, plan=plan).ok
    with torch.no_grad():
        model.weight[1, 8:] = torch.tensor([1.0, 2.0, 3.0])
    tensor = one(verify(model, plan=plan))
    assert (tensor.groups, tensor.complying, tensor.first.index) == (6, 5, (1, 8))
    assert str(tensor.first) == "[1, 8:11] = (1, 2, 3) with 3 non-zeros"


def test_a_layer_that_m_does_not_divide_is_a_line_not_a_warning() -> None:
    model = nn.Sequential(nn.Linear(8, 10), nn.Linear(10, 4))
    make_sparse(model, make_plan(model, "2:4", exclude=["1"]))
    report = verify(model, "2:4")
    assert report.ok
    left = {t.name: t.reason for t in report.tensors if t.status == "dense"}
    assert left["1.weight"] == "dimension 1 has 10 elements, not a multiple of 4"
    assert "1.weight" in str(report)
    assert str(report).endswith("1 tensor complies, 1 left dense; 2 with fewer than two dimensions not shown")


def test_nan_counts_as_a_weight() -> None:
    tensor = one(verify({"a.weight": torch.tensor([[NAN, 1.0, 0.0, 2.0]])}, "2:4"))
    assert tensor.status == "violated"
    assert str(tensor.first) == "[0, 0:4] = (nan, 1, 0, 2) with 3 non-zeros"
    assert json.loads(json.dumps(tensor.to_dict(), allow_nan=False))["first_offending_group"] == {
        "index": [0, 0],
        "values": ["nan", 1.0, 0.0, 2.0],
    }


def test_a_module_needs_a_pattern_and_a_layer() -> None:
    with pytest.raises(ValueError, match="give one, as in verify"):
        verify(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no parameter of this LayerNorm can become sparse"):
        verify(nn.LayerNorm(4), "2:4")
    with pytest.raises(TypeError, match="got a int"):
        verify(3, "2:4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'fc' is on the meta device"):
        verify({"fc": torch.zeros(4, 4, device="meta")}, plan=plan_of({"fc": ((4, 4), "2:4")}))


def test_compiled_and_wrapped_modules() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    plan = make_plan(model, "2:4")
    make_sparse(model, plan)
    compiled = torch.compile(model, backend="eager")
    assert verify(compiled, plan=plan).ok
    assert verify(compiled, "2:4").tensors[0].name == "0.weight"
    assert verify(compiled.state_dict(), plan=plan).tensors[0].name == "_orig_mod.0.weight"
    wrapped = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    assert verify(wrapped, plan=plan).ok
    prefixed = {f"module.{name}": value for name, value in model.state_dict().items()}
    assert verify(prefixed | wrapped, plan=plan).ok  # one tensor under two names
    other = {name: value.clone() for name, value in prefixed.items()}
    with pytest.raises(ValueError, match=r"several tensors for '0\.weight'"):
        verify(wrapped | other, plan=plan)


# -- with a plan ----------------------------------------------------------------------------------


def plan_of(tensors: dict[str, tuple[tuple[int, ...], str | None]]) -> SparsityPlan:
    return SparsityPlan(
        tuple(
            PlanEntry(
                name=name,
                shape=shape,
                kind="Linear",
                pattern=None if pattern is None else NMPattern.parse(pattern),
                dim=None if pattern is None else 1,
                reason="default" if pattern else "excluded by the user",
            )
            for name, (shape, pattern) in tensors.items()
        )
    )


SPARSE, FULL = torch.tensor([[0.0, 1.0, 2.0, 0.0]]).repeat(2, 1), torch.ones(2, 4)


def test_every_planned_tensor_must_be_there_with_its_shape() -> None:
    plan = plan_of({"a": ((2, 4), "2:4"), "b": ((2, 4), "2:4"), "c": ((2, 8), "2:4"), "d": ((2, 4), None)})
    report = verify({"a": SPARSE, "c": SPARSE, "d": FULL, "e": FULL}, plan=plan)
    assert {t.name: (t.status, t.reason) for t in report.tensors} == {
        "a": ("ok", "default"),
        "b": ("missing", "the state dict has no tensor of this name"),
        "c": ("shape", "the plan has shape (2, 8)"),
        "d": ("dense", "excluded by the user"),
        "e": ("dense", "not in the plan"),
    }
    with pytest.raises(
        NotSparseError, match=r"(?s)2 of 3 tensors failed.*'b' .*no tensor.*'c' .*the plan has shape"
    ):
        report.raise_if_failed()
    assert report.to_dict()["ok"] is False
    assert [t["share"] for t in report.to_dict()["tensors"]] == [1.0, 0.0, 0.0, None, None]


def test_a_pattern_beside_a_plan_is_asked_of_its_tensors() -> None:
    plan = plan_of({"a": ((2, 4), "2:4"), "d": ((2, 4), None)})
    assert verify({"a": SPARSE, "d": FULL}, plan=plan).ok
    assert not verify({"a": SPARSE, "d": FULL}, "1:4", plan=plan).ok
    tensor = one(verify({"a": SPARSE, "d": FULL}, "2:8", plan=plan))
    assert (tensor.status, tensor.reason) == ("violated", "dimension 1 has 4 elements, not a multiple of 8")


def test_include_and_exclude_narrow_a_plan() -> None:
    plan = plan_of({"x.a": ((2, 4), "2:4"), "y.b": ((2, 4), "2:4")})
    state = {"x.a": SPARSE, "y.b": FULL}
    assert not verify(state, plan=plan).ok
    assert verify(state, plan=plan, exclude=["y"]).ok
    assert verify(state, plan=plan, include=["x.*"]).ok
    with pytest.raises(ValueError, match=r"exclude names 'z', which matches no tensor"):
        verify(state, plan=plan, exclude=["z"])
    with pytest.raises(ValueError, match=r"exclude takes a list of names, got the string 'y'"):
        verify(state, plan=plan, exclude="y")
    with pytest.raises(
        ValueError, match="nothing to verify in the state dict: no tensor is expected to be sparse"
    ):
        verify(state, plan=plan, exclude=["x", "y"])
    with pytest.raises(ValueError, match="no tensor is expected to be sparse"):
        verify(state, plan=SparsityPlan(()))


@pytest.mark.parametrize("dim", [None, 2, -1, "1"])
def test_a_plan_that_groups_nowhere_fails(dim: Any) -> None:
    entry = PlanEntry(name="a", shape=(2, 4), kind="Linear", pattern=NMPattern(2, 4), dim=dim)
    tensor = one(verify({"a": SPARSE}, plan=SparsityPlan((entry,))))
    assert (tensor.status, tensor.reason) == ("shape", f"the plan groups along dimension {dim!r}")


def test_tied_weights_are_found_under_any_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    plan = make_plan(model, "2:4")
    make_sparse(model, plan)
    assert [t.name for t in verify(model, plan=plan).tensors] == ["0.weight"]
    report = verify({"1.weight": model[1].weight}, plan=plan)
    assert [(t.name, t.status) for t in report.tensors] == [("1.weight", "ok")]


def test_a_rule_for_a_bare_parameter() -> None:
    model = nn.Module()
    model.experts = nn.Parameter(torch.tensor([[[1.0], [0.0], [3.0], [0.0]]]))
    plan = make_plan(model, "1:2", rules={"experts": Rule("1:2", dim=1)})
    assert verify(model, plan=plan).ok
    assert not verify(model, "1:4", plan=plan).ok
