from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import nmstep
from nmstep import Rule, SparsityPlan


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.conv = nn.Conv2d(8, 16, 3)
        self.up = nn.ConvTranspose2d(16, 6, 2)
        self.attention = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=12, vdim=4)
        self.gpt = Conv1D(10, 12)
        self.odd = nn.Linear(30, 10)
        self.norm = nn.LayerNorm(8)
        self.rnn = nn.GRU(8, 8)
        self.experts = nn.Parameter(torch.randn(2, 8, 4))
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight


def quiet(*args: object, **kwargs: object) -> SparsityPlan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nmstep.plan(*args, **kwargs)  # type: ignore[arg-type]


def test_every_parameter_is_there_with_its_dimension_or_reason() -> None:
    model = Model()
    plan = quiet(model, "2:4")
    assert [e.name for e in plan.entries] == [name for name, _ in model.named_parameters()]
    sparse = {e.name: e.dim for e in plan.sparse}
    assert sparse == {
        "conv.weight": 1,
        "up.weight": 0,
        "attention.in_proj_weight": 1,
        "attention.out_proj.weight": 1,
        "cross.q_proj_weight": 1,
        "cross.k_proj_weight": 1,
        "cross.v_proj_weight": 1,
        "cross.out_proj.weight": 1,
        "gpt.weight": 0,
    }
    reasons = {e.name: e.reason for e in plan.entries if e.pattern is None}
    assert reasons["embed.weight"] == "tied to an embedding"
    assert reasons["odd.weight"] == "dimension 1 has 30 elements, not a multiple of 4"
    assert reasons["norm.weight"] == "norm"
    assert reasons["conv.bias"] == reasons["attention.in_proj_bias"] == "bias"
    assert "a rule can name it" in reasons["experts"]
    assert "a rule can name it" in reasons["rnn.weight_ih_l0"]
    assert all(reasons.values())
    (tied,) = [e for e in plan.entries if e.name == "embed.weight"]
    assert tied.aliases == ("head.weight",)


def test_a_layer_left_dense_is_a_warning_that_says_what_to_do() -> None:
    with pytest.warns(UserWarning, match=r"'odd.weight': dimension 1 has 30 elements.*on_indivisible='pad'"):
        nmstep.plan(Model(), "2:4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nmstep.plan(Model(), "2:4", exclude=["odd", "rnn", "experts"])


def test_indivisible_policies() -> None:
    with pytest.raises(
        ValueError, match=r"cannot apply 2:4 to 'odd.weight' with shape \(10, 30\).*exclude=\['odd'\]"
    ):
        nmstep.plan(Model(), "2:4", on_indivisible="error")
    plan = nmstep.plan(Model(), "2:4", on_indivisible="pad", exclude=["rnn", "experts"])
    (odd,) = [e for e in plan.sparse if e.name == "odd.weight"]
    assert odd.pad
    assert odd.kept == 10 * (7 * 2 + 2)
    with pytest.raises(ValueError, match="expected 'dense', 'error' or 'pad'"):
        nmstep.plan(Model(), "2:4", on_indivisible="ignore")  # type: ignore[arg-type]


def test_rules_over_exclude_over_include_over_default() -> None:
    plan = quiet(
        Model(),
        "2:4",
        include=["conv", "attention*", "up"],
        exclude=["up", "attention.out_proj"],
        rules={"attention*": "1:4", "attention.in_proj_weight": None, "gpt": "1:4"},
    )
    chosen = {e.name: str(e.pattern) for e in plan.sparse}
    assert chosen == {"conv.weight": "2:4", "attention.out_proj.weight": "1:4", "gpt.weight": "1:4"}
    reasons = {e.name: e.reason for e in plan.entries}
    assert reasons["attention.in_proj_weight"] == "dense by rule 'attention.in_proj_weight'"
    assert reasons["up.weight"] == "excluded by 'up'"
    assert reasons["cross.q_proj_weight"] == "not in include"


def test_a_rule_with_a_dimension_reaches_bare_parameters_and_embeddings() -> None:
    plan = quiet(Model(), "2:4", rules={"experts": Rule("1:4", dim=-1), "embed": Rule("2:4", dim=1)})
    sparse = {e.name: (str(e.pattern), e.dim) for e in plan.sparse}
    assert sparse["experts"] == ("1:4", 2)
    assert sparse["embed.weight"] == ("2:4", 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"exclude": ["convv"]}, r"exclude names 'convv', which matches no parameter.*nearest: 'conv"),
        ({"include": ["nothing.*"]}, "include names 'nothing.\\*'"),
        ({"rules": {"hed": "2:4"}}, "rules names 'hed'.*nearest: 'head"),
        ({"rules": {"experts": "2:4"}}, "no parameter it matches has a known reduction dimension.*Rule"),
        ({"rules": {"experts": Rule("2:4", dim=3)}}, "groups 'experts' along dimension 3"),
        ({"rules": {"conv": "4:2"}}, "pattern 4:2 keeps 4"),
        ({"exclude": "conv"}, r"write exclude=\['conv'\]"),
    ],
)
def test_rules_that_cannot_be_meant(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        quiet(Model(), "2:4", **arguments)


def test_a_model_without_a_sparsifiable_layer() -> None:
    with pytest.raises(ValueError, match="no parameter of this Sequential can become sparse"):
        nmstep.plan(nn.Sequential(nn.LayerNorm(8), nn.Embedding(4, 8)), "2:4")


def test_layers_tied_to_each_other() -> None:
    same = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    same["b"].weight = same["a"].weight
    (entry,) = nmstep.plan(same, "2:4").sparse
    assert (entry.name, entry.aliases) == ("a.weight", ("b.weight",))
    across = nn.ModuleDict({"a": nn.Linear(8, 8), "b": Conv1D(8, 8), "c": nn.Linear(8, 8)})
    across["b"].weight = across["a"].weight
    assert [e.name for e in nmstep.plan(across, "2:4").sparse] == ["c.weight"]


def test_lazy_modules_are_named() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet"):
        nmstep.plan(model, "2:4")


def test_a_compiled_model_has_the_names_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    compiled = torch.compile(model, backend="eager")
    plan = nmstep.plan(compiled, "2:4")  # type: ignore[arg-type]
    assert [e.name for e in plan.sparse] == ["0.weight"]
    assert plan.resolve(compiled)["0.weight"] is model[0].weight  # type: ignore[arg-type]


def test_save_and_load(tmp_path: Path) -> None:
    plan = quiet(Model(), "2:4", on_indivisible="pad", rules={"gpt": "1:4"})
    plan.save(tmp_path / "plan.json")
    assert SparsityPlan.load(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_text('{"version": 1, "entries": [{"name": "x"}]}')
    with pytest.raises(ValueError, match=r"cannot read a sparsity plan from '.*plan.json'"):
        SparsityPlan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read a sparsity plan from"):
        SparsityPlan.load(tmp_path / "plan.json")


def test_resolve_refuses_another_model() -> None:
    plan = nmstep.plan(nn.Sequential(nn.Linear(8, 8)), "2:4")
    with pytest.raises(ValueError, match=r"made for '0.weight' with shape \(8, 8\).*\(8, 12\)"):
        plan.resolve(nn.Sequential(nn.Linear(12, 8)))
    with pytest.raises(ValueError, match="which this ModuleDict does not have"):
        plan.resolve(nn.ModuleDict({"fc": nn.Linear(8, 8)}))


def test_density_counts_dense_parameters_too() -> None:
    plan = nmstep.plan(nn.Sequential(nn.Linear(8, 4)), "2:4")
    assert plan.density == pytest.approx((16 + 4) / (32 + 4))
    assert "1 of 2 parameters sparse; 20 of 36 weights kept (55.6%)" in str(plan)


def test_a_grouped_transposed_convolution_has_no_dimension_of_its_own() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, groups=2), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match="'0.weight': no reduction dimension known"):
        plan = nmstep.plan(model, "2:4")
    assert [e.name for e in plan.sparse] == ["1.weight"]


def test_a_plan_whose_pattern_does_not_fit_is_refused_before_the_first_step() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    plan = nmstep.plan(model, "2:4").with_pattern("1:16")
    with pytest.raises(ValueError, match=r"cannot apply 1:16 to '0.weight' with shape \(8, 8\)"):
        nmstep.sparsify(model, nmstep.AdamW(model.parameters()), nmstep.ASP(plan, start=5))


def test_the_warning_points_to_who_called() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match="stay dense") as planned:
        nmstep.plan(model, "2:4")
    with pytest.warns(UserWarning, match="stay dense") as attached:
        nmstep.sparsify(model, nmstep.AdamW(model.parameters()), nmstep.STE("2:4"))
    assert [warning.filename for warning in (*planned, *attached)] == [__file__, __file__]
