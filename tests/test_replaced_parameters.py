"""A model whose parameters are replaced after ``sparsify``, as by ``fully_shard``: steps would go to others."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import nmstep
from tiny import backward, net


def assign(model: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def one_layer(model: nn.Module) -> None:
    layer = model.get_submodule("0")
    layer.weight = nn.Parameter(torch.randn_like(layer.get_parameter("weight")))


@pytest.mark.parametrize("recipe", [nmstep.SRSTE("2:4"), nmstep.STEP("2:4", total_steps=100)])
@pytest.mark.parametrize("replace", [assign, one_layer])
def test_the_first_step_says_so(recipe: nmstep.Recipe, replace: Callable[[nn.Module], None]) -> None:
    model = net()
    optimizer = nmstep.AdamW(model.parameters())
    sparsifier = nmstep.sparsify(model, optimizer, recipe)
    replace(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    backward(model)
    with pytest.raises(RuntimeError, match=r"no longer holds the parameter of the optimizer as '0\.weight'"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="no longer holds"):
        sparsifier.finalize()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_replaced_later_and_all_of_them() -> None:
    model = net()
    optimizer = nmstep.AdamW(model.parameters())
    nmstep.sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    assign(model)
    backward(model)
    with pytest.raises(RuntimeError, match="no longer holds"):
        optimizer.step()


def test_both_replaced_together_go_on() -> None:
    """As Accelerate does under FSDP2."""
    model = net()
    optimizer = nmstep.AdamW(model.parameters())
    sparsifier = nmstep.sparsify(model, optimizer, nmstep.STE("2:4"))
    assign(model)
    by_name = dict(model.named_parameters())
    names = [name for name, _ in net().named_parameters()]
    old = optimizer.param_groups[0]["params"]
    for p, name in zip(list(old), names, strict=True):
        optimizer.state[by_name[name]] = optimizer.state.pop(p)
    optimizer.param_groups[0]["params"] = [by_name[name] for name in names]
    backward(model)
    optimizer.step()
    assert sparsifier.step == 1
