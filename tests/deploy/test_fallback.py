"""Layers that hold or multiply their weight dense, where that is faster."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import nmstep
from nmstep.deploy import PackedConv, PackedLinear, moving, packed_layers
from nmstep.kernels import break_even
from nmstep.kernels.native import Status, kernels
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


def test_a_state_dict_that_does_not_fit_leaves_a_weight_as_it_was() -> None:
    held = nmstep.pack(small(), "2:4")
    before = copy.deepcopy(held.state_dict())
    for name in ("2.values", "2.indices"):
        with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
            held.load_state_dict({**before, name: before[name][:, :3]})
        assert torch.equal(nmstep.unpack(held)[2].weight, small()[2].weight)


@pytest.mark.parametrize("fallback", [True, False])
def test_int8_values_are_not_taken_for_numbers_nor_numbers_for_int8(fallback: bool) -> None:
    plain = nmstep.pack(small(), "2:4", fallback=fallback)
    whole = nmstep.pack(small(), "2:4", dtype=torch.int8, fallback=fallback)
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        for model, other in ((plain, whole), (whole, plain)):
            before = model(x)
            for strict in (True, False):
                with pytest.raises(RuntimeError, match="int8 values count steps of their scales"):
                    model.load_state_dict(other.state_dict(), strict=strict)
            assert torch.equal(model(x), before)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_int8_values_come_back_from_casts(tmp_path: Path, narrow: torch.dtype) -> None:
    held, x = nmstep.pack(small(), "2:4", dtype=torch.int8), torch.randn(2, 8, 4, 4)
    before = nmstep.unpack(held)
    held.to(narrow)
    nmstep.save_packed(held, tmp_path / "narrow.safetensors")
    loaded = nmstep.load_packed(tmp_path / "narrow.safetensors", small())
    with torch.no_grad():
        assert torch.equal(loaded(x.to(narrow)), held(x.to(narrow)))
    after = nmstep.unpack(held.float())
    assert torch.equal(after[0].weight, before[0].weight)
    assert torch.equal(after[2].weight, before[2].weight)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_layers_have_int8_values_too_and_run_dense(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small().to(dtype)
    with torch.no_grad():
        model[2].weight[:, 2:].mul_(1e-3)  # which becomes zero
        model[2].weight[3] = 0  # a row without a scale
    held = nmstep.pack(model, "2:4", dtype=torch.int8)
    strict = nmstep.pack(model, "2:4", dtype=torch.int8, fallback=False)
    assert [layer.dense_from for layer in packed_layers(held).values()] == [0, 0]
    assert "dtype=torch.int8, error=" in repr(held[0])
    assert "held dense" in repr(held[0])
    first, second = held.state_dict(), strict.state_dict()
    assert list(first) == list(second)
    assert first["0.values"].dtype == torch.int8
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, packed in (("held", held), ("strict", strict)):
        nmstep.save_packed(packed, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "held.safetensors").read_bytes() == (tmp_path / "strict.safetensors").read_bytes()
    loaded = nmstep.load_packed(tmp_path / "held.safetensors", small().to(dtype))
    dense = nmstep.unpack(strict)
    x = torch.randn(2, 8, 4, 4).to(dtype)
    with torch.no_grad():
        for again in (held, loaded, copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
            assert torch.equal(again(x), dense(x))
        assert torch.equal(nmstep.unpack(held)[2].weight, dense[2].weight)
        other = nmstep.pack(small().to(dtype), "2:4", dtype=torch.int8)
        other.load_state_dict(first)
        assert torch.equal(other(x), dense(x))
        empty = copy.deepcopy(held).to("meta")
        assert {n: (t.shape, t.dtype) for n, t in empty.state_dict().items()} == {
            n: (t.shape, t.dtype) for n, t in first.items()
        }
        empty.load_state_dict(first, assign=True)
        assert torch.equal(empty(x), dense(x))
        if dtype is torch.float16:
            return  # rounded twice, a weight may come a step away
        held.bfloat16()
        assert all(torch.equal(t, second[n]) for n, t in held.state_dict().items() if "bias" not in n)


def test_weights_come_back_and_casts_copies_and_pickles_work() -> None:
    model = small()
    packed = nmstep.pack(model, "2:4")
    assert torch.equal(nmstep.unpack(packed)[0].weight, model[0].weight)
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(again(x), model(x))
        strict = pickle.loads(pickle.dumps(nmstep.pack(model, "2:4", fallback=False)))
        assert not strict[0]._product.fallback
        assert torch.equal(copy.deepcopy(packed).double()(x.double()), model.double()(x.double()))


def test_a_weight_of_two_layers_stays_one() -> None:
    model = masked(nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)), "2:4")
    model[1].weight = model[0].weight
    packed = nmstep.pack(model, "2:4")
    assert [layer.dense_from for layer in packed_layers(packed).values()] == [None, None]
    assert packed[0].values is packed[1].values


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_a_weight_of_two_layers_stays_one_when_it_is_cast_or_moved(dtype: torch.dtype | None) -> None:
    model = masked(nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)), "2:4")
    model[1].weight = model[0].weight
    packed = nmstep.pack(model, "2:4", dtype=dtype, fallback=False)
    scales = None if dtype is None else packed[0].scales.clone()
    x = torch.randn(3, 16)

    class Cast:  # neither hashed nor referred to weakly
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, t: torch.Tensor) -> torch.Tensor:
            return t.bfloat16() if t.is_floating_point() else t

    with torch.no_grad():
        expected = packed(x)
        for cast in (
            lambda m: m.half(),
            lambda m: m.to(torch.bfloat16),
            lambda m: m.float(),
            lambda m: m.double(),
            lambda m: m.to(torch.float32),
        ):
            cast(packed)
            for name in ("values", "indices", "scales"):
                assert getattr(packed[0], name) is getattr(packed[1], name)
            assert packed[0].owner == packed[1].owner
            assert dtype is None or torch.equal(packed[0].scales, scales)
        torch.testing.assert_close(packed(x), expected, rtol=0.02, atol=0.02)
        empty = copy.deepcopy(packed).to("meta").to_empty(device="cpu")
        assert empty[0].values is empty[1].values
        assert empty[0].indices is empty[1].indices
        assert copy.deepcopy(packed)._apply(Cast())[0].dtype == torch.bfloat16
    assert not moving._made  # nothing outlives the functions


def test_what_stays_as_it_is_does_not_outlive_its_layer() -> None:
    layer = nmstep.pack(masked(nn.Linear(16, 16), "2:4"), "2:4", fallback=False)

    def unchanged(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    layer._apply(unchanged)
    values = weakref.ref(layer.values)
    del layer
    gc.collect()
    assert values() is None


def test_wrong_inputs_and_backward_are_the_same_errors() -> None:
    layer = nmstep.pack(masked(nn.Linear(16, 8), "2:4"), "2:4")
    with pytest.raises(ValueError, match="a packed weight of 16 inputs got"):
        layer(torch.randn(2, 15))
    with pytest.raises(ValueError, match="expected floating numbers"):
        layer(torch.ones(2, 16, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="no backward pass"):
        layer(torch.randn(2, 16, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("side", [16, 256])
def test_the_bias_alone_wants_gradients(side: int) -> None:
    layer = nmstep.pack(masked(nn.Linear(side, side), "2:4"), "2:4")
    y = layer(torch.randn(2, side))
    with pytest.raises(RuntimeError, match="no backward pass"):
        y.sum().backward()
    assert layer.bias.grad is None


def test_a_held_layer_takes_what_a_packed_one_takes() -> None:
    layer = masked(nn.Linear(16, 8), "2:4")
    held, strict = nmstep.pack(layer, "2:4"), nmstep.pack(layer, "2:4", fallback=False)
    conv = nmstep.pack(masked(nn.Conv2d(8, 4, 3), "2:4"), "2:4")
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            x = torch.randn(3, 16).to(dtype)
            assert held(x).dtype == strict(x).dtype == dtype
            torch.testing.assert_close(held(x), strict(x), rtol=0.02, atol=0.02)
            assert conv(torch.randn(1, 8, 5, 5).to(dtype)).dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            assert held(torch.randn(3, 16)).dtype == strict(torch.randn(3, 16)).dtype == torch.bfloat16
    for one in (held, strict):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="expected floating"):
            one(torch.ones(3, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got torch.int64 of shape .* expected floating"):
        conv(torch.ones(1, 8, 5, 5, dtype=torch.int64))


@pytest.mark.parametrize("fallback", [True, False])
def test_state_dicts_over_the_meta_device(fallback: bool) -> None:
    model = small()
    packed = nmstep.pack(model, "2:4", fallback=fallback)
    state, x = packed.state_dict(), torch.randn(2, 8, 4, 4)
    skeleton = copy.deepcopy(packed).to("meta")
    shapes = {name: (t.shape, t.dtype) for name, t in skeleton.state_dict().items()}
    assert shapes == {name: (t.shape, t.dtype) for name, t in state.items()}
    skeleton.load_state_dict(state, assign=True)
    emptied = copy.deepcopy(packed).to("meta").to_empty(device="cpu")
    for buffer in emptied.buffers():
        buffer.fill_(1)
    emptied.load_state_dict(state)
    with torch.no_grad():
        for again in (skeleton, emptied):
            assert torch.allclose(again(x), model(x), atol=1e-5)
        other = small()
        other[2].weight.mul_(3)
        found = torch.func.functional_call(packed, nmstep.pack(other, "2:4", fallback=False).state_dict(), x)
        assert torch.allclose(found, other(x), atol=1e-5)
    packed.load_state_dict({"2.bias": torch.zeros(12)}, strict=False)
    assert torch.equal(packed.state_dict()["2.values"], state["2.values"])


def test_what_is_loaded_is_saved() -> None:
    narrow = nmstep.pack(small(), "2:4", dtype=torch.bfloat16)
    wide = nmstep.pack(small(), "2:4").state_dict()
    narrow.load_state_dict(wide, assign=True)
    assert torch.equal(narrow.state_dict()["0.values"], wide["0.values"])
    for fallback in (True, False):
        half = nmstep.pack(small().bfloat16(), "2:4", dtype=torch.float16, fallback=fallback)
        assert half.state_dict()["0.values"].dtype == torch.float16


def test_int8_on_the_meta_device() -> None:
    packed = nmstep.pack(small(), "2:4", dtype=torch.int8, fallback=False)
    again = copy.deepcopy(packed).to("meta").to_empty(device="cpu")
    again.load_state_dict(packed.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 8, 4, 4)
        assert torch.equal(again(x), packed(x))
        assert copy.deepcopy(packed).to("meta")(x.to("meta")).shape == (2, 12)


def test_a_layer_of_two_names_is_in_the_file_once(tmp_path: Path) -> None:
    layer = masked(nn.Linear(32, 32), "2:4")
    model = nn.Sequential(layer, nn.ReLU(), layer)
    sizes = []
    for fallback in (True, False):
        packed = nmstep.pack(model, "2:4", fallback=fallback)
        nmstep.save_packed(packed, tmp_path / "p.safetensors")
        sizes.append((tmp_path / "p.safetensors").stat().st_size)
        loaded = nmstep.load_packed(tmp_path / "p.safetensors", model, fallback=fallback)
        assert loaded[0] is loaded[2]
        assert loaded[0].dense_from == packed[0].dense_from
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("skeleton", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fallback", [True, False])
def test_a_model_is_what_its_file_says(
    tmp_path: Path, saved: torch.dtype, skeleton: torch.dtype, fallback: bool
) -> None:
    model = small().to(saved)
    packed = nmstep.pack(model, "2:4")
    nmstep.save_packed(packed, tmp_path / "p.safetensors")
    loaded = nmstep.load_packed(tmp_path / "p.safetensors", small().to(skeleton), fallback=fallback)
    x = torch.randn(2, 8, 4, 4).to(saved)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), packed(x), rtol=0.02, atol=0.02)
    assert {p.dtype for p in nmstep.unpack(loaded).parameters()} == {saved}
    assert torch.equal(nmstep.unpack(loaded)[0].weight, model[0].weight)


def test_weights_come_back_with_their_strides() -> None:
    for conv in (nn.Conv2d(16, 8, 1), nn.Conv1d(16, 8, 1), nn.Conv2d(16, 8, 3), nn.Conv2d(16, 8, (1, 3))):
        model = nn.Sequential(conv)
        with torch.no_grad():
            conv.weight.mul_(nmstep.nm_mask(conv.weight, "2:4", dim=1))
        for fallback in (True, False):
            packed = nmstep.pack(model, "2:4", fallback=fallback)
            assert nmstep.unpack(packed)[0].weight.stride() == conv.weight.stride()
            assert packed[0].weight.stride() == conv.weight.stride()


def test_empty_batches() -> None:
    model = small()
    with torch.no_grad():
        for fallback in (True, False):
            assert nmstep.pack(model, "2:4", fallback=fallback)(torch.randn(0, 8, 4, 4)).shape == (0, 12)


def test_a_weight_that_its_settings_do_not_describe_stays_dense() -> None:
    conv = nn.Conv2d(16, 8, 3, bias=False)
    conv.weight = nn.Parameter(
        torch.randn(8, 32, 3, 3) * nmstep.nm_mask(torch.randn(8, 32, 3, 3), "2:4", dim=1)
    )
    with pytest.raises(ValueError, match="nothing to pack"):
        nmstep.pack(conv, "2:4")


def test_kernels_see_another_bias() -> None:
    layer = nmstep.pack(masked(nn.Linear(256, 256), "2:4"), "2:4", fallback=False)
    x = torch.zeros(1, 256)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], layer.bias)
        layer.bias = nn.Parameter(torch.ones(256))
        assert torch.equal(layer(x), torch.ones(1, 256))
        layer.half()
        assert torch.equal(layer(x.half()), torch.ones(1, 256).half())


def test_what_breaks_even() -> None:
    def tiling(side: int, pattern: str) -> Tiling:
        return Tiling(side, side, nmstep.NMPattern.parse(pattern))

    assert break_even.is_better_dense(tiling(192, "1:16"), torch.float32)
    assert break_even.is_better_dense(tiling(1024, "15:16"), torch.float32)
    assert break_even.is_better_dense(
        Tiling(1, 65536, nmstep.NMPattern(1, 16)), torch.float32
    )  # of sixteen rows one is there
    if kernels() is not None:
        assert not break_even.is_better_dense(tiling(208, "1:16"), torch.float32)
    assert break_even.dense_from(tiling(1024, "2:4"), torch.float32) is None


@pytest.mark.parametrize(
    ("active", "most"),
    [("avx512_bf16", "3:4"), ("avx512", "3:4"), ("avx2", "3:4"), ("plain", "1:8"), ("triton", "3:4")],
)
def test_what_each_instruction_set_breaks_even_at(
    monkeypatch: pytest.MonkeyPatch, active: str, most: str
) -> None:
    here = Status(active=active, why="", usable=())
    monkeypatch.setattr(break_even, "status", lambda: here)
    for pattern in ("1:16", "1:8", "1:4", "2:4", "3:4", "7:8"):
        parsed = nmstep.NMPattern.parse(pattern)
        is_dense = break_even.is_better_dense(Tiling(1024, 1024, parsed), torch.float32)
        assert is_dense == (parsed.density > nmstep.NMPattern.parse(most).density)
    monkeypatch.setattr(break_even, "status", lambda: Status(active="torch", why="", usable=()))
    assert break_even.is_better_dense(Tiling(1024, 1024, nmstep.NMPattern(1, 16)), torch.float32)


@pytest.mark.parametrize(
    ("amx", "bf16", "pairs", "from_64", "held"),
    [
        (True, True, True, {"1:4", "2:4", "3:7", "3:4"}, {"3:4"}),
        (False, True, True, {"3:7", "3:4"}, {"3:4"}),
        (False, True, False, {"2:4", "3:7", "3:4"}, {"3:4"}),
        (False, False, False, set(), set()),
    ],
)
def test_processors_that_multiply_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, amx: bool, bf16: bool, pairs: bool, from_64: set[str], held: set[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(
        break_even, "_goes_by_pairs", lambda pattern: pairs and str(pattern) in ("1:4", "2:4")
    )
    monkeypatch.setattr(break_even, "status", lambda: Status(active="avx512", why="", usable=()))
    break_even._multiplies_bf16.cache_clear()
    tilings = {
        pattern: Tiling(1024, 1024, nmstep.NMPattern.parse(pattern))
        for pattern in ("2:4", "1:4", "1:8", "3:7", "3:4")
    }
    found = {p: break_even.dense_from(tiling, torch.bfloat16) for p, tiling in tilings.items()}
    better = {p for p, tiling in tilings.items() if break_even.is_better_dense(tiling, torch.bfloat16)}
    wide = {p for p, tiling in tilings.items() if break_even.is_better_dense(tiling, torch.float32)}
    break_even._multiplies_bf16.cache_clear()
    assert found == {pattern: 64 if pattern in from_64 else None for pattern in found}
    assert (better, wide) == (held, set())


def test_the_kernels_say_what_goes_by_pairs() -> None:
    module = kernels()
    if module is None:
        pytest.skip("no compiled kernels")
    before = module.active()
    patterns = [(1, 2), (1, 4), (2, 4), (4, 8), (2, 8), (6, 8), (3, 4), (1, 8), (2, 16)]
    found = {}
    for variant in module.variants():
        module.use(variant)
        found[variant] = [module.goes_by_pairs(n, m) for n, m in patterns]
    module.use(before)
    by_pairs = [index < 6 for index in range(len(patterns))]
    assert found == {name: by_pairs if name == "avx512_bf16" else [False] * 9 for name in found}


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


def test_layers_that_share_a_weight_share_it_again(tmp_path: Path) -> None:
    model = masked(nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)), "2:4")
    model[1].weight = model[0].weight
    nmstep.save_packed(nmstep.pack(model, "2:4"), tmp_path / "p.safetensors")
    again = nmstep.unpack(nmstep.load_packed(tmp_path / "p.safetensors", model))
    assert again[0].weight is again[1].weight


def test_layers_that_share_a_bias_share_it_again() -> None:
    model = masked(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), "2:4")
    model[1].bias = model[0].bias
    packed = nmstep.pack(model, "2:4")
    for other in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), nmstep.unpack(packed)):
        assert other[0].bias is other[1].bias
    assert nmstep.unpack(packed)[0].bias.data_ptr() == model[0].bias.data_ptr()


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = masked(nn.Linear(16, 8), "2:4")
        self.register_buffer("positions", torch.arange(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.positions


def test_buffers_that_a_state_dict_leaves_out(tmp_path: Path) -> None:
    model, x = Positions(), torch.randn(2, 16)
    packed = nmstep.pack(model, "2:4")
    nmstep.save_packed(packed, tmp_path / "p.safetensors")
    with torch.device("meta"):
        skeleton = Positions()
    with torch.no_grad():
        assert torch.equal(nmstep.load_packed(tmp_path / "p.safetensors", skeleton)(x), packed(x))
        other = Positions()
        other.positions += 1  # one that the model made itself stays
        found = nmstep.load_packed(tmp_path / "p.safetensors", other)(x)
        torch.testing.assert_close(found, packed(x) + 1)


def test_a_packed_model_is_no_dense_one() -> None:
    packed = nmstep.pack(small(), "2:4")
    for use in (lambda: nmstep.plan(packed, "2:4"), lambda: nmstep.verify(packed, "2:4")):
        with pytest.raises(ValueError, match=r"Sequential is packed.*nmstep.unpack\(model\)"):
            use()


def test_a_packed_model_of_transformers_is_not_saved_as_one() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes))
    plan = nmstep.plan(model, "2:4")
    with torch.no_grad():
        for weight in plan.resolve(model).values():
            weight.mul_(nmstep.nm_mask(weight, "2:4"))
    packed = nmstep.pack(model, plan=plan)
    with pytest.raises(RuntimeError, match=r"nmstep.save_packed\(model, path\), or nmstep.export_dense"):
        packed.save_pretrained("nowhere")
    assert "save_pretrained" not in vars(nmstep.unpack(packed))
