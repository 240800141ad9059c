"""Packed weights as int8 with a scale for each row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep.deploy import packed_layers
from nmstep.quantizing import quantized


def model(pattern: str = "2:4") -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(48, 40), nn.GELU(), nn.Linear(40, 24, bias=False))
    with torch.no_grad():
        for layer in (made[0], made[2]):
            layer.weight.mul_(nmstep.nm_mask(layer.weight, pattern))
            layer.weight[3] = 0  # a row without a scale
            layer.weight[5] *= 1e4  # and one of another size
    return made


def rounded(weight: Tensor) -> Tensor:
    """Returns a weight of whole steps of its rows' largest magnitudes over 127."""
    step = weight.abs().amax(1, keepdim=True) / 127
    return torch.where(step > 0, (weight / step).round() * step, 0.0)


@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
@pytest.mark.parametrize("batch", [1, 70])
def test_outputs_are_those_of_the_rounded_weights(pattern: str, batch: int) -> None:
    dense = model(pattern)
    packed = nmstep.pack(dense, dtype=torch.int8)
    expected = model(pattern)
    for layer in (expected[0], expected[2]):
        layer.weight.data = rounded(layer.weight.data)
    x = torch.randn(batch, 48)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), expected(x), rtol=1e-4, atol=1e-3)
        y = torch.export.export(packed, (x,)).module()(x)
        assert torch.equal(y, packed(x))


def test_the_error_is_reported() -> None:
    dense = model()
    layer = packed_layers(nmstep.pack(dense, dtype=torch.int8))["0"]
    weight = dense[0].weight.detach()
    expected = float((rounded(weight) - weight).norm() / weight.norm())
    assert layer.error == pytest.approx(expected, rel=1e-3)
    assert 0 < expected < 0.01
    assert f"dtype=torch.int8, error={expected:.2%}" in repr(layer)
    assert packed_layers(nmstep.pack(dense))["0"].error is None


def test_files_and_back(tmp_path: Path) -> None:
    dense = model()
    packed = nmstep.pack(dense, dtype=torch.int8)
    nmstep.save_packed(packed, tmp_path / "int8.safetensors")
    loaded = nmstep.load_packed(tmp_path / "int8.safetensors", model())
    x = torch.randn(3, 48)
    with torch.no_grad():
        assert torch.equal(loaded(x), packed(x))
    assert packed_layers(loaded)["0"].error == packed_layers(packed)["0"].error
    weight = nmstep.unpack(loaded)[0].weight
    torch.testing.assert_close(weight.detach(), rounded(dense[0].weight.detach()), rtol=1e-6, atol=0)
    nmstep.verify(nmstep.unpack(loaded), "2:4").raise_if_failed()


def test_casting_leaves_scales_as_they_are() -> None:
    packed = nmstep.pack(model(), dtype=torch.int8)
    before = {name: layer.scales.clone() for name, layer in packed_layers(packed).items()}
    x = torch.randn(5, 48)
    with torch.no_grad():
        expected = packed(x)
        found = packed.to(torch.bfloat16)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).norm() / expected.norm()) < 0.02
    for name, layer in packed_layers(packed).items():
        assert layer.values.dtype == torch.int8
        assert torch.equal(layer.scales, before[name])
    assert nmstep.unpack(packed)[0].weight.dtype == torch.bfloat16


def test_a_row_of_zeros_stays_so() -> None:
    whole, scales, error = quantized(torch.zeros(1, 4, 16))
    assert not bool(whole.count_nonzero())
    assert not bool(scales.count_nonzero())
    assert error == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    dense = model()
    with torch.no_grad():
        dense[0].weight[0, dense[0].weight[0] != 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        nmstep.pack(dense, "2:4", dtype=torch.int8)


def test_sizes_of_every_order(tmp_path: Path) -> None:
    for size in (1e30, 1e-30, 1e-41):
        dense = nn.Sequential(nn.Linear(48, 40))
        with torch.no_grad():
            dense[0].weight.mul_(nmstep.nm_mask(dense[0].weight, "2:4")).mul_(size)
        packed = nmstep.pack(dense, "2:4", dtype=torch.int8)
        error = packed_layers(packed)["0"].error
        assert 0 < error < (0.01 if size > 1e-38 else 2)
        nmstep.save_packed(packed, tmp_path / "p.safetensors")
        nmstep.load_packed(tmp_path / "p.safetensors", dense)


def test_float16_is_refused_where_it_would_overflow() -> None:
    dense = model()
    with torch.no_grad():
        dense[0].weight.mul_(1e6)
    with pytest.raises(ValueError, match="float16 holds numbers up to 65504, and a weight is"):
        nmstep.pack(dense, "2:4", dtype=torch.float16)
