"""torchao: zeros stay zeros under int8 weights and through quantisation-aware training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import integrated
import nmstep

torchao = pytest.importorskip("torchao.quantization")

from torchao.quantization.granularity import PerGroup  # noqa: E402
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig  # noqa: E402
from torchao.quantization.quant_primitives import MappingType  # noqa: E402

INT8 = {
    "int8": torchao.Int8WeightOnlyConfig(),
    "int8 by groups": torchao.Int8WeightOnlyConfig(granularity=PerGroup(32)),
    "int4 asymmetric": torchao.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=PerGroup(32), mapping_type=MappingType.ASYMMETRIC
    ),
}


def net() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :32]).square().mean().backward()
        optimizer.step()


def trained(model: nn.Module, steps: int = 12) -> tuple[nn.Module, nmstep.Sparsifier]:
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    recipe = nmstep.STEP("2:4", total_steps=steps, switch=nmstep.SwitchAt(4))
    sparsifier = nmstep.sparsify(model, optimizer, recipe)
    train(model, optimizer, steps)
    return model, sparsifier


def int_values(weight: Any) -> Tensor:
    """The integers that torchao holds, as it holds them."""
    return next(getattr(weight, name) for name in ("qdata", "int_data") if hasattr(weight, name))


@pytest.mark.parametrize("config", INT8.values(), ids=INT8.keys())
def test_masks_survive_weights_of_integers(config: Any) -> None:
    model, sparsifier = trained(net())
    sparsifier.finalize()
    dense = [model[i].weight.detach().clone() for i in (0, 2)]
    torchao.quantize_(model, config)
    for i, before in zip((0, 2), dense, strict=True):
        weight = model[i].weight
        assert type(weight) is not nn.Parameter
        values = weight.dequantize()
        assert bool((values[before == 0] == 0).all())
        assert integrated.most_kept(values) == 2
        torch.testing.assert_close(values, before, atol=float(before.abs().max()) / 7, rtol=0)
    report = nmstep.verify(model, "2:4")
    assert report.ok
    assert [t.groups for t in report.tensors if t.pattern] == [64 * 16, 32 * 16]


def test_int8_holds_zeros_as_the_integer_zero() -> None:
    model, sparsifier = trained(net())
    sparsifier.finalize()
    zeros = model[0].weight == 0
    torchao.quantize_(model, INT8["int8"])
    assert int_values(model[0].weight).dtype == torch.int8
    assert bool((int_values(model[0].weight)[zeros] == 0).all())


def test_a_dense_model_of_integers_is_found_out() -> None:
    model = net()
    torchao.quantize_(model, INT8["int8"])
    report = nmstep.verify(model, "2:4")
    assert not report.ok
    assert report.tensors[0].first is not None


def test_training_with_rounded_weights_ends_sparse_and_rounded() -> None:
    """Prepare, sparsify, train over the switch, convert: what is deployed is what was trained, and 2:4."""
    base = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int8)
    model = net()
    torchao.quantize_(model, QATConfig(base, step="prepare"))
    assert type(model[0]) is not nn.Linear
    model, sparsifier = trained(model)
    assert sparsifier.switch_step == 4
    x = torch.randn(4, 64)
    with torch.no_grad():
        fake = model(x)
    sparsifier.finalize()
    zeros = [model[i].weight == 0 for i in (0, 2)]
    torchao.quantize_(model, QATConfig(base, step="convert"))
    assert type(model[0]) is nn.Linear
    for i, zero in zip((0, 2), zeros, strict=True):
        assert float(zero.float().mean()) >= 0.5
        assert bool((model[i].weight.dequantize()[zero] == 0).all())
    assert nmstep.verify(model, "2:4").ok
    with torch.no_grad():
        torch.testing.assert_close(model(x), fake, atol=1e-4, rtol=1e-4)


def test_rounding_may_begin_in_the_middle_of_a_sparse_run() -> None:
    """prepare and convert keep the parameters, so the optimizer and its sparsifier go on."""
    model = net()
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    sparsifier = nmstep.sparsify(
        model, optimizer, nmstep.STEP("2:4", total_steps=12, switch=nmstep.SwitchAt(4))
    )
    train(model, optimizer, 6)
    weight = model[0].weight
    config = IntxFakeQuantizeConfig(torch.int8, granularity="per_channel", is_symmetric=True)
    torchao.quantize_(model, QATConfig(weight_config=config, step="prepare"))
    assert model[0].weight is weight
    before = weight.detach().clone()
    train(model, optimizer, 6)
    assert not torch.equal(weight, before)
    assert sparsifier.step == 12
    torchao.quantize_(model, QATConfig(step="convert"))
    assert model[0].weight is weight
    sparsifier.finalize()
    assert integrated.most_kept(weight) == 2
    torchao.quantize_(model, INT8["int8"])
    assert nmstep.verify(model, "2:4").ok
