"""Layers that hold or multiply their weight dense, where that is faster."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import nmstep
from nmstep.deploy import PackedConv, PackedLinear, packed_layers
from nmstep.kernels import break_even
from nmstep.kernels.native import kernels
from nmstep.kernels.packed import PackedProduct
from nmstep.tiles import Tiling, pack_rows

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no compiled kernels")


def masked(model: nn.Module, pattern: str) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.mul_(nmstep.nm_mask(module.weight, pattern, dim=1))
    return model


def small() -> nn.Module:
    torch.manual_seed(0)
    return masked(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 16, 12)), "2:4")


def test_small_layers_run_as_the_dense_ones() -> None:
    model = small()
    packed = nmstep.pack(model, "2:4")
    x = torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        assert torch.equal(packed(x), model(x))
        assert torch.equal(packed[0](x[0]), model[0](x[0]))  # without a batch
    assert [layer.dense_from for layer in packed_layers(packed).values()] == [0, 0]
    assert "held dense" in repr(packed[0])
    assert isinstance(packed[0], PackedConv)
    assert isinstance(packed[2], PackedLinear)


def test_without_fallback_all_run_packed(tmp_path: Path) -> None:
    packed = nmstep.pack(small(), "2:4", fallback=False)
    nmstep.save_packed(packed, tmp_path / "p.safetensors")
    loaded = nmstep.load_packed(tmp_path / "p.safetensors", small(), fallback=False)
    for model in (packed, loaded):
        assert all(layer.dense_from is None for layer in packed_layers(model).values())
        assert "dense" not in repr(model[0])
        assert model[0].values is not None


def test_files_and_state_dicts_are_the_same_either_way(tmp_path: Path) -> None:
    dense, strict = nmstep.pack(small(), "2:4"), nmstep.pack(small(), "2:4", fallback=False)
    first, second = dense.state_dict(), strict.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    nmstep.save_packed(dense, tmp_path / "dense.safetensors")
    nmstep.save_packed(strict, tmp_path / "strict.safetensors")
    assert (tmp_path / "dense.safetensors").read_bytes() == (tmp_path / "strict.safetensors").read_bytes()
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        for path in ("dense", "strict"):
            loaded = nmstep.load_packed(tmp_path / f"{path}.safetensors", small())
            assert torch.equal(loaded(x), dense(x))


def test_a_state_dict_is_loaded() -> None:
    model, other = small(), small()
    with torch.no_grad():
        other[2].weight.mul_(2)
    packed = nmstep.pack(model, "2:4")
    packed.load_state_dict(nmstep.pack(other, "2:4", fallback=False).state_dict())
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        assert torch.equal(packed(x), other(x))
    state = packed.state_dict()
    del state["2.values"]
    with pytest.raises(RuntimeError, match=r"2\.values"):
        packed.load_state_dict(state)


def test_values_narrower_than_the_layer() -> None:
    model = small()
    packed = nmstep.pack(model, "2:4", dtype=torch.bfloat16)
    rounded = copy.deepcopy(model)
    for layer in (rounded[0], rounded[2]):
        layer.weight.data = layer.weight.data.bfloat16().float()
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        assert torch.equal(packed(x), rounded(x))
    assert packed.state_dict()["0.values"].dtype == torch.bfloat16
    assert "dtype=torch.bfloat16" in repr(packed[0])
    packed.to(torch.float16)
    assert packed.state_dict()["0.values"].dtype == torch.float16


def test_small_layers_do_not_become_int8() -> None:
    packed = nmstep.pack(small(), "2:4", dtype=torch.int8)
    assert packed.state_dict()["0.values"].dtype == torch.float32
    strict = nmstep.pack(small(), "2:4", dtype=torch.int8, fallback=False)
    assert strict.state_dict()["0.values"].dtype == torch.int8


def test_weights_come_back_and_casts_copies_and_pickles_work() -> None:
    model = small()
    packed = nmstep.pack(model, "2:4")
    assert torch.equal(nmstep.unpack(packed)[0].weight, model[0].weight)
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(again(x), model(x))
        assert torch.equal(copy.deepcopy(packed).double()(x.double()), model.double()(x.double()))


def test_a_weight_of_two_layers_stays_one() -> None:
    model = masked(nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)), "2:4")
    model[1].weight = model[0].weight
    packed = nmstep.pack(model, "2:4")
    assert [layer.dense_from for layer in packed_layers(packed).values()] == [None, None]
    assert packed[0].values is packed[1].values


def test_wrong_inputs_and_backward_are_the_same_errors() -> None:
    layer = nmstep.pack(masked(nn.Linear(16, 8), "2:4"), "2:4")
    with pytest.raises(ValueError, match="a packed weight of 16 inputs got"):
        layer(torch.randn(2, 15))
    with pytest.raises(ValueError, match="expected floating numbers"):
        layer(torch.ones(2, 16, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="no backward pass"):
        layer(torch.randn(2, 16, requires_grad=True)).sum().backward()


def test_what_breaks_even() -> None:
    def tiling(side: int, pattern: str) -> Tiling:
        return Tiling(side, side, nmstep.NMPattern.parse(pattern))

    assert break_even.is_small(tiling(192, "1:16"))
    assert not break_even.is_small(tiling(208, "1:16"))
    assert break_even.is_better_dense(tiling(192, "1:16"))
    assert break_even.is_better_dense(tiling(1024, "15:16"))
    if kernels() is not None:
        assert not break_even.is_better_dense(tiling(1024, "1:16"))
    assert break_even.dense_from(tiling(1024, "2:4"), torch.float32) is None


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("outputs", [40, 700])
def test_batches_from_the_break_even_on(
    monkeypatch: pytest.MonkeyPatch, has_bias: bool, outputs: int
) -> None:
    """The weight made dense for the call, in one part or several."""
    if kernels() is None:
        pytest.skip("no compiled kernels")
    monkeypatch.setattr("nmstep.kernels.packed.dense_from", lambda *_: 20)
    monkeypatch.setattr("nmstep.kernels.packed._PART", 100_000)
    torch.manual_seed(0)
    weight = torch.randn(outputs, 90) * nmstep.nm_mask(torch.randn(outputs, 90), "2:5")
    bias = torch.randn(outputs).bfloat16() if has_bias else None
    values, indices = pack_rows(weight.bfloat16(), nmstep.NMPattern(2, 5))
    product = PackedProduct(Tiling(outputs, 90, nmstep.NMPattern(2, 5)))
    for shape in ((19, 90), (20, 90), (3, 7, 90)):
        x = torch.randn(shape).bfloat16()
        expected = x.double() @ weight.bfloat16().double().T + (0 if bias is None else bias.double())
        found = product(x, values, indices, None, bias)
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)


@needs_kernels
def test_rows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmstep.kernels.packed.dense_from", lambda *_: 20)
    layer = nmstep.pack(masked(nn.Linear(256, 256), "2:4").bfloat16(), "2:4")
    assert layer.dense_from == 20
    assert "dense from 20 rows" in repr(layer)
    monkeypatch.setattr(PackedProduct, "_by_parts", lambda *_: torch.zeros(()))
    with torch.no_grad():
        assert layer(torch.randn(19, 256).bfloat16()).shape == (19, 256)
        assert layer(torch.randn(20, 256).bfloat16()).shape == ()
        assert layer(torch.randn(20, 256)).shape == (20, 256)
