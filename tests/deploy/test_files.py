"""Packed files: whole and in shards, back as they were, and no damage that goes unseen or crashes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nmstep
from nmstep.deploy import packed_layers

KEY = "nmstep_packed"


def skeleton(width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 20, bias=False))


@pytest.fixture
def packed() -> nn.Module:
    torch.manual_seed(0)
    model = skeleton().eval()
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.mul_(nmstep.nm_mask(layer.weight, "2:4"))
    return nmstep.pack(model)


@pytest.fixture
def path(packed: nn.Module, tmp_path: Path) -> Path:
    nmstep.save_packed(packed, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return skeleton().eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("make", [skeleton, on_meta])
def test_a_model_comes_back(packed: nn.Module, path: Path, make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    loaded = nmstep.load_packed(path, model)
    assert same(loaded, packed)
    assert isinstance(model[0], nn.Linear)  # type: ignore[index]
    x = torch.randn(5, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), packed(x))
    assert list(path.parent.iterdir()) == [path]


def test_what_was_loaded_is_written_again_to_the_byte(path: Path, tmp_path: Path) -> None:
    nmstep.save_packed(nmstep.load_packed(path, on_meta()), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_shards(packed: nn.Module, tmp_path: Path) -> None:
    nmstep.save_packed(packed, tmp_path / "model.safetensors", shard_bytes=2000)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert same(nmstep.load_packed(tmp_path / "model.safetensors.index.json", on_meta()), packed)
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=shards[1].name):
        nmstep.load_packed(tmp_path / "model.safetensors.index.json", on_meta())


def test_a_single_layer_comes_back(tmp_path: Path) -> None:
    layer = nn.Linear(32, 24)
    with torch.no_grad():
        layer.weight.mul_(nmstep.nm_mask(layer.weight, "2:4"))
    packed = nmstep.pack(layer)
    nmstep.save_packed(packed, tmp_path / "layer.safetensors")
    assert same(nmstep.load_packed(tmp_path / "layer.safetensors", nn.Linear(32, 24)), packed)


def test_one_name_is_one_model(packed: nn.Module, path: Path) -> None:
    nmstep.save_packed(packed, path, shard_bytes=2000)
    assert not path.exists()
    nmstep.save_packed(packed, path)
    assert not path.with_name("model.safetensors.index.json").exists()
    for wrong in (0, -5, 1.5):
        with pytest.raises(ValueError, match="positive number of bytes"):
            nmstep.save_packed(packed, path, shard_bytes=wrong)  # type: ignore[arg-type]


def test_shards_of_two_models(packed: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nmstep.save_packed(packed, path, shard_bytes=2000)
    shard = sorted(tmp_path.glob("model-*-of-*.safetensors"))[1]
    whole = shard.read_bytes()
    rewritten(shard, lambda _, d: d["layers"]["0"].update(pattern="1:4"))
    for spoil in (lambda: None, lambda: save_file(load_file(shard), shard)):
        spoil()
        with pytest.raises(ValueError, match=r"shards that .* names are of different packed models"):
            nmstep.load_packed(tmp_path / "model.safetensors.index.json", on_meta())
    shard.write_bytes(whole)
    nmstep.load_packed(tmp_path / "model.safetensors.index.json", on_meta())


def test_an_index_that_names_itself(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(ValueError, match="points outside"):
        nmstep.load_packed(index, skeleton())


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32), nn.Linear(32, 64, bias=False))
    model[2].weight = model[0].weight
    with torch.no_grad():
        model[1].weight.mul_(nmstep.nm_mask(model[1].weight, "1:8"))
    packed = nmstep.pack(model, "1:8")
    nmstep.save_packed(packed, tmp_path / "tied.safetensors")
    assert "2.weight" not in load_file(tmp_path / "tied.safetensors")
    loaded = nmstep.load_packed(tmp_path / "tied.safetensors", model)
    assert same(loaded, packed)
    assert loaded[2].weight is loaded[0].weight


@pytest.mark.parametrize(("pattern", "bits"), [("2:4", 4), ("1:4", 2), ("1:8", 3), ("1:16", 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_is_as_large_as_values_and_index_bits(
    tmp_path: Path, pattern: str, bits: int, dtype: torch.dtype
) -> None:
    layer = nn.Linear(768, 768, bias=False)
    n, m = map(int, pattern.split(":"))
    with torch.no_grad():
        layer.weight.mul_(nmstep.nm_mask(layer.weight, pattern))
    nmstep.save_packed(nmstep.pack(layer, dtype=dtype), tmp_path / "layer.safetensors")
    least = 768 * 768 // m * (n * dtype.itemsize + bits / 8)
    assert least <= (tmp_path / "layer.safetensors").stat().st_size <= 1.02 * least


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 0), (torch.bfloat16, 0), (torch.int8, 4)])
def test_a_file_has_no_rows_that_fill_a_tile(
    tmp_path: Path, rows: int, dtype: torch.dtype, scale: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(768, rows, bias=False)
    with torch.no_grad():
        layer.weight.mul_(nmstep.nm_mask(layer.weight, "2:8"))
    packed = nmstep.pack(layer, dtype=dtype)
    nmstep.save_packed(packed, tmp_path / "layer.safetensors")
    held = sum(t.nbytes for t in load_file(tmp_path / "layer.safetensors").values())
    assert held == rows * (
        192 * dtype.itemsize + 20 * 4 + scale
    )  # 192 values; ten places of three bits a word
    again = nmstep.load_packed(tmp_path / "layer.safetensors", nn.Linear(768, rows, bias=False))
    assert same(again, packed)
    assert torch.equal(nmstep.unpack(again).weight, nmstep.unpack(packed).weight)
    assert packed.values.shape == (-(-rows // 16), 192, 16)  # in memory, and in a state dict


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors, description = load_file(path), json.loads(header["__metadata__"][KEY])
    change(tensors, description)
    save_file(tensors, path, {KEY: json.dumps(description)})


CHANGES: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], object], str]] = [
    ("version", lambda _, d: d.update(version=1), "version 1 is not known, expected 2: pack"),
    ("no layers", lambda _, d: d.pop("layers"), "KeyError"),
    ("a list", lambda _, d: d.update(layers=[]), "AttributeError"),
    ("pattern", lambda _, d: d["layers"]["0"].update(pattern="4:2"), "impossible"),
    ("negative", lambda _, d: d["layers"]["0"].update(shape=[48, -32]), "no positive sizes"),
    ("text", lambda _, d: d["layers"]["0"].update(shape=[48, "32"]), "no positive sizes"),
    ("huge", lambda _, d: d["layers"]["0"].update(shape=[48, 10**15]), r"\(48, 1000000000000000\)"),
    ("a vector", lambda _, d: d["layers"]["0"].update(shape=[48]), "no 2:4 rows"),
    ("other dimension", lambda _, d: d["layers"]["0"].update(dim=0), "along dimension 0, but"),
    ("no dimension", lambda _, d: d["layers"]["0"].update(dim=None), "a dimension"),
    ("other pattern", lambda _, d: d["layers"]["0"].update(pattern="1:4"), "expected shape"),
    ("large groups", lambda _, d: d["layers"]["0"].update(pattern="1:2000000000"), "to pack"),
    ("larger groups", lambda _, d: d["layers"]["0"].update(pattern=f"1:{10**22}"), "to pack"),
    ("a pattern that keeps all", lambda _, d: d["layers"]["0"].update(pattern="4:4"), "to pack"),
    ("other m", lambda _, d: d["layers"]["0"].update(pattern="4:8"), "expected shape"),
    ("unknown layer", lambda _, d: d["layers"].update(nine=d["layers"]["0"]), "no such layer"),
    ("not a layer", lambda _, d: d["layers"].update({"1": d["layers"]["0"]}), "BatchNorm1d"),
    ("not listed", lambda _, d: d["layers"].pop("3"), "lacks tensors of the model: '3.weight'"),
    ("no values", lambda t, _: t.pop("0.values"), "'0.values' is missing"),
    ("no bias", lambda t, _: t.pop("0.bias"), "lacks tensors of the model: '0.bias'"),
    ("one more", lambda t, _: t.update(more=torch.zeros(1)), "does not have: 'more'"),
    ("other dtype", lambda t, _: t.update({"0.values": t["0.values"].char()}), "int8"),
    ("index dtype", lambda t, _: t.update({"0.indices": t["0.indices"].float()}), "float32"),
    ("bias shape", lambda t, _: t.update({"0.bias": torch.zeros(3)}), "does not fit the model"),
    (
        "bias kind",
        lambda t, _: t.update({"0.bias": torch.zeros(48, dtype=torch.int64)}),
        "torch.int64, expected",
    ),
    (
        "a complex bias",
        lambda t, _: t.update({"0.bias": torch.zeros(48, dtype=torch.complex64)}),
        "complex64",
    ),
    (
        "whole numbers",
        lambda t, _: t.update({"1.running_var": t["1.running_var"].int()}),
        "running_var' is torch.int32",
    ),
    ("a buffer of a layer", lambda t, _: t.update({"0._dtype": torch.zeros(0)}), "does not have: '0._dtype'"),
    (
        "alias",
        lambda _, d: d.update(aliases={"nine.bias": "zero"}),
        "'zero' is named as a tensor of several names",
    ),
    ("alias number", lambda _, d: d.update(aliases={"0.bias": 3}), "aliases are not names"),
    ("an error below zero", lambda _, d: d["layers"]["0"].update(int8_error=-1.0), "no error of rounding"),
    ("an error in words", lambda _, d: d["layers"]["0"].update(int8_error="small"), "no error of rounding"),
    ("a dtype that is none", lambda _, d: d["layers"]["0"].update(dtype="int4"), "'int4' is none of"),
    ("scales of fp32", lambda t, _: t.update({"0.scales": torch.ones(3, 16)}), "does not have: '0.scales'"),
    ("alias of itself", lambda _, d: d.update(aliases={"0.bias": "3.bias"}), "is a tensor, and another name"),
    ("no scales", lambda _, d: d["layers"]["0"].update(int8_error=0.01), "'0.scales' is missing"),
    ("indices", lambda t, _: t["0.indices"].zero_(), r"damaged: in '0', row 0, group 0"),
]


@pytest.mark.parametrize(("change", "match"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_what_does_not_agree_is_refused(path: Path, change: Callable[..., object], match: str) -> None:
    rewritten(path, change)
    with pytest.raises(ValueError, match=match):
        nmstep.load_packed(path, on_meta())


def test_a_name_of_nothing_is_not_exported(path: Path, tmp_path: Path) -> None:
    rewritten(path, lambda _, d: d.update(aliases={"nine.bias": "zero"}))
    with pytest.raises(ValueError, match="'zero' is named as a tensor of several names"):
        nmstep.export_dense(path, tmp_path / "out")


@pytest.mark.parametrize("scale", [-1.0, float("inf"), float("nan")])
def test_damaged_scales_are_refused(packed: nn.Module, path: Path, scale: float) -> None:
    nmstep.save_packed(nmstep.pack(nmstep.unpack(packed), dtype=torch.int8), path)
    rewritten(path, lambda t, _: t["3.scales"].view(-1)[5].fill_(scale))
    with pytest.raises(ValueError, match=r"damaged: a scale of '3' is negative, infinite or NaN"):
        nmstep.load_packed(path, on_meta())


def test_a_model_of_other_sizes_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"'0' with a weight of shape \(48, 32\) .* \(48, 64\)"):
        nmstep.load_packed(path, skeleton(64))


def test_what_is_no_model_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match=r"takes a module .* got a dict"):
        nmstep.load_packed(path, {})  # type: ignore[arg-type]


def test_a_dense_file_is_refused(tmp_path: Path) -> None:
    save_file(skeleton().state_dict(), tmp_path / "dense.safetensors")
    with pytest.raises(ValueError, match="is no packed model"):
        nmstep.load_packed(tmp_path / "dense.safetensors", skeleton())


def test_buffers_that_only_a_real_model_has(path: Path) -> None:
    model = on_meta()
    model.register_buffer("table", torch.zeros(3, device="meta"), persistent=False)
    with pytest.raises(ValueError, match=r"'table'.*on the CPU"):
        nmstep.load_packed(path, model)


def test_truncated_files_are_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 101):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            nmstep.load_packed(path, on_meta())


def test_flipped_bytes_are_refused_or_harmless(packed: nn.Module, path: Path) -> None:
    """Values have no redundancy, so that a flip there cannot be seen; it must not crash either."""
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    x, generator = torch.randn(3, 32), torch.Generator().manual_seed(0)
    places = [*range(0, header, 3), *torch.randint(header, len(whole), (60,), generator=generator).tolist()]
    for place in places:
        flipped = bytes([whole[place] ^ (1 << place % 8)])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            loaded = nmstep.load_packed(path, on_meta())
        except (ValueError, FileNotFoundError):
            continue
        with torch.no_grad():
            assert loaded(x).shape == (3, 20)
        assert packed_layers(loaded).keys() == packed_layers(packed).keys()


def test_a_claim_of_a_billion_values_in_a_small_file(path: Path) -> None:
    header = {"0.values": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(900))
    with pytest.raises(ValueError, match="truncated, corrupted"):
        nmstep.load_packed(path, on_meta())


@pytest.mark.parametrize(
    "shape", ["[-2, 8]", "[2, 2]", '["2"]', "[1e3]", "[99999999999999999999]", "[4294967296, 4294967296]"]
)
def test_hostile_shapes(path: Path, shape: str) -> None:
    text = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 64]}}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        nmstep.load_packed(path, on_meta())


def test_saving_refuses_what_is_not_packed(packed: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no packed layer"):
        nmstep.save_packed(skeleton(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"a \.safetensors file, not to"):
        nmstep.save_packed(packed, tmp_path / "model.pt")


def test_a_file_that_was_there_stays_when_writing_fails(path: Path, packed: nn.Module) -> None:
    before = path.read_bytes()
    packed.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(Exception, match=r"(?i)complex|dtype"):
        nmstep.save_packed(packed, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def shared(columns: int, other: int) -> nn.Module:
    """Returns two layers of as many outputs that are too large to be held dense."""
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(width, 40_000, bias=False) for width in (columns, other)])


def test_a_weight_is_not_shared_by_layers_of_other_patterns(tmp_path: Path) -> None:
    """Places below 4 are no places of groups of 3: the kernel would read beside its input."""
    model, path = shared(4, 3), tmp_path / "model.safetensors"
    with torch.no_grad():
        model[0].weight.mul_(nmstep.nm_mask(model[0].weight, "2:4"))
    plan = nmstep.plan(model, "2:4", include=["0"])
    nmstep.save_packed(nmstep.pack(model, plan=plan), path)

    def share(tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
        del tensors["1.weight"]
        description["layers"]["1"] = {"pattern": "2:3", "shape": [40_000, 3], "dim": 1}
        description["aliases"] |= {"1.values": "0.values", "1.indices": "0.indices"}

    rewritten(path, share)
    for read in (lambda: nmstep.load_packed(path, model), lambda: nmstep.export_dense(path, tmp_path / "e")):
        with pytest.raises(
            ValueError, match=r"'0.values' is shared by layers that are stored differently, '1'"
        ):
            read()


def test_values_are_not_shared_without_their_places(tmp_path: Path) -> None:
    model, path = shared(4, 4), tmp_path / "model.safetensors"
    with torch.no_grad():
        for layer in model:
            layer.weight.mul_(nmstep.nm_mask(layer.weight, "2:4"))
    nmstep.save_packed(nmstep.pack(model, "2:4"), path)

    def share(tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
        del tensors["1.values"]
        description["aliases"]["1.values"] = "0.values"

    rewritten(path, share)
    with pytest.raises(ValueError, match=r"'0.values' is shared by layers that are stored differently, '1'"):
        nmstep.load_packed(path, model)
