"""Merged adapters: N:M as the base was, with the weights that follow from LoRA's own equation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmstep

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from nmstep.integrations.peft import base_model, merge_adapter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()))


def cut(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Keeps the N largest of each M, by sorting."""
    groups = weight.unflatten(-1, (-1, m))
    lost = groups.abs().argsort(-1)[..., : m - n]
    return groups.scatter(-1, lost, 0.0).flatten(-2)


def sparse_net() -> Net:
    model = Net()
    for layer in (model.first, model.second):
        layer.weight.data = cut(layer.weight.data)
    return model


def adapted(model: nn.Module, **settings: Any) -> Any:
    """A LoRA adapter with random B, so that it changes something."""
    config = {"target_modules": ["first", "second"], "r": 2, "lora_alpha": 8, "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**{**config, **settings}))


def update(model: Any, name: str) -> Tensor:
    """alpha / r · B A, from the adapter's own matrices."""
    layer = model.get_submodule(f"base_model.model.{name}")
    return (8 / 2) * layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()


def test_zeros_stay_where_they_are() -> None:
    model = sparse_net()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapter = adapted(model)
    changes = {name: update(adapter, name) for name in ("first", "second")}
    merged = merge_adapter(adapter, "2:4", exclude=["head"])
    assert type(merged.model) is Net
    assert merged.report.ok
    assert [entry.name for entry in merged.plan.sparse] == ["first.weight", "second.weight"]
    for name, change in changes.items():
        weight = merged.model.get_parameter(f"{name}.weight")
        expected = torch.where(old[f"{name}.weight"] != 0, old[f"{name}.weight"] + change, 0.0)
        torch.testing.assert_close(weight.detach(), expected)
        kept = old[f"{name}.weight"] != 0
        share = float(change[~kept].norm() / change.norm())
        assert merged.lost[f"{name}.weight"] == pytest.approx(share, rel=1e-4)
    assert torch.equal(merged.model.head.weight, old["head.weight"])


def test_masks_are_chosen_anew_from_the_merged_weight() -> None:
    model = sparse_net()
    old = model.first.weight.detach().clone()
    adapter = adapted(model, target_modules=["first"])
    full = old + update(adapter, "first")
    merged = merge_adapter(adapter, masks="choose", exclude=["head"])  # the pattern is found from the zeros
    torch.testing.assert_close(merged.model.first.weight.detach(), cut(full))
    assert not torch.equal(merged.model.first.weight != 0, old != 0)
    assert list(merged.lost) == ["first.weight"]
    assert merged.lost["first.weight"] == pytest.approx(
        float((full - cut(full)).norm() / update_norm(full, old)), rel=1e-4
    )


def update_norm(full: Tensor, old: Tensor) -> Tensor:
    return (full - old).norm()


def test_several_adapters_and_dora_merge_as_peft_merges_them() -> None:
    model = sparse_net()
    adapter = adapted(model, use_dora=True)
    plain = copy.deepcopy(adapter).merge_and_unload()
    merged = merge_adapter(adapter, exclude=["head"])
    kept = sparse_net().first.weight != 0
    torch.testing.assert_close(merged.model.first.weight, plain.first.weight * kept)

    model = sparse_net()
    adapter = adapted(model)
    adapter.add_adapter("other", peft.LoraConfig(target_modules=["first"], r=1, init_lora_weights=False))
    adapter.base_model.set_adapter(["default", "other"])
    plain = copy.deepcopy(adapter).merge_and_unload()
    merged = merge_adapter(adapter, exclude=["head"])
    torch.testing.assert_close(merged.model.first.weight, plain.first.weight * kept)


def test_gpt2s_transposed_layers_group_along_their_inputs() -> None:
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    plan = nmstep.plan(model, "1:4")
    for entry in plan.sparse:
        weight = model.get_parameter(entry.name)
        weight.data = cut(weight.data.T, 1).T.contiguous()
    adapter = adapted(model, target_modules=["c_attn"], fan_in_fan_out=True)
    merged = merge_adapter(adapter, plan=plan)
    weight = merged.model.transformer.h[0].attn.c_attn.weight
    assert int((weight.T.unflatten(-1, (-1, 4)) != 0).sum(-1).max()) == 1
    assert merged.report.ok
    assert list(merged.lost) == ["transformer.h.0.attn.c_attn.weight"]


def test_what_peft_trains_whole_is_dense_unless_it_is_sparse() -> None:
    model = sparse_net()
    adapter = adapted(model, modules_to_save=["head"])
    with torch.no_grad():
        adapter.base_model.model.head.modules_to_save["default"].weight.fill_(7.0)
    merged = merge_adapter(adapter, "2:4", exclude=["head"])
    assert torch.equal(merged.model.head.weight, torch.full((2, 16), 7.0))


def test_the_base_model_has_its_names_and_weights_back() -> None:
    model = sparse_net()
    model.head.weight = nn.Parameter(torch.ones(2, 16))
    names = list(model.state_dict())
    weight = model.first.weight
    adapter = adapted(model, modules_to_save=["head"])
    base = base_model(adapter)
    assert list(base.state_dict()) == names
    assert base.first.weight is weight
    assert base.head.weight is adapter.base_model.model.head.modules_to_save["default"].weight
    assert hasattr(adapter.base_model.model.first, "lora_A")  # the adapter is as it was


def test_a_dense_base_is_refused_before_anything_is_merged() -> None:
    model = Net()
    adapter = adapted(model)
    before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    with pytest.raises(nmstep.NotSparseError, match=r"first.weight"):
        merge_adapter(adapter, "2:4", exclude=["head"])
    with pytest.raises(ValueError, match="no layer of this Net is N:M"):
        merge_adapter(adapter)
    after = dict(adapter.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="masks='both': expected 'keep' or 'choose'"):
        merge_adapter(adapted(sparse_net()), masks="both")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a PeftModel, got a Net"):
        merge_adapter(sparse_net())


def test_an_update_that_is_not_finite_is_refused() -> None:
    adapter = adapted(sparse_net())
    adapter.base_model.model.first.lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        merge_adapter(adapter, exclude=["head"])


def test_the_recipe_merges_and_then_tunes_under_the_same_masks() -> None:
    """Adapter, merge with W's own masks, a few steps of ASP, whose mask is the merged weight's."""
    merged = merge_adapter(adapted(sparse_net()), exclude=["head"])
    model, zeros = merged.model, {e.name: merged.model.get_parameter(e.name) == 0 for e in merged.plan.sparse}
    for p in model.parameters():
        p.requires_grad_(True)
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    nmstep.sparsify(model, optimizer, nmstep.ASP(merged.plan))
    losses = []
    x = torch.randn(32, 16)
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert all(bool((model.get_parameter(name)[zero] == 0).all()) for name, zero in zeros.items())
