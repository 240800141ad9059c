"""A checkpoint becomes a packed file that its model can load."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import nn

import nmstep
from nmstep.deploy import PackedFile, pack_file, packed_layers
from nmstep.experiments.weights import save_weights


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 16, 3),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.TransformerEncoderLayer(32, 2, 64),
        nn.LayerNorm(32),
    )


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(0)
    trained = model().eval()
    plan = nmstep.plan(trained, "2:4")
    with torch.no_grad():
        for entry, weight in zip(plan.sparse, plan.resolve(trained).values(), strict=True):
            weight.mul_(nmstep.nm_mask(weight, "2:4", dim=entry.dim or 0))
    return trained


@pytest.fixture
def checkpoint(trained: nn.Module, tmp_path: Path) -> Path:
    plan = json.dumps(nmstep.plan(trained, "2:4").to_dict())
    save_file(trained.state_dict(), tmp_path / "model.safetensors", {"nm_sparsity": plan})
    return tmp_path


def test_a_checkpoint_is_packed_without_its_model(trained: nn.Module, checkpoint: Path) -> None:
    packed = pack_file(checkpoint, checkpoint / "packed.safetensors")
    assert isinstance(packed, PackedFile)
    assert packed.packed == (checkpoint / "packed.safetensors").stat().st_size < packed.dense
    assert packed.dense == sum(t.nbytes for t in trained.state_dict().values())
    assert sorted(packed.layers) == ["0", "2", "3.linear1", "3.linear2"]
    assert packed.left == ("3.self_attn.in_proj_weight", "3.self_attn.out_proj.weight")
    loaded = nmstep.load_packed(packed.path, model().eval())
    assert list(packed_layers(loaded)) == ["0", "2", "3.linear1", "3.linear2"]
    x = torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), trained(x), rtol=1e-5, atol=1e-5)
    unpacked = nmstep.unpack(loaded).state_dict()
    assert all(torch.equal(unpacked[name], weight) for name, weight in trained.state_dict().items())


def test_the_file_can_be_read_by_whom_the_user_lets_read(checkpoint: Path) -> None:
    pack_file(checkpoint, checkpoint / "packed.safetensors")
    (checkpoint / "plain").touch()
    modes = [stat.S_IMODE((checkpoint / name).stat().st_mode) for name in ("packed.safetensors", "plain")]
    assert modes[0] == modes[1]


def test_a_model_that_reads_a_packed_weight_itself_gets_it_dense(
    trained: nn.Module, checkpoint: Path
) -> None:
    pack_file(checkpoint, checkpoint / "packed.safetensors")

    class Own(nn.Linear):
        pass

    other = model().eval()
    other[2] = Own(64, 32)  # type: ignore[operator]
    loaded = nmstep.load_packed(checkpoint / "packed.safetensors", other)
    assert "2" not in packed_layers(loaded)
    assert torch.equal(loaded[2].weight, trained[2].weight)  # type: ignore[index]


def test_values_in_another_dtype(trained: nn.Module, checkpoint: Path) -> None:
    packed = pack_file(checkpoint, checkpoint / "packed.safetensors", dtype=torch.bfloat16)
    loaded = nmstep.load_packed(packed.path, model())
    assert packed_layers(loaded)["2"].values.dtype == torch.bfloat16
    assert torch.equal(packed_layers(loaded)["2"].weight, trained[2].weight.bfloat16())  # type: ignore[index]


def test_what_has_no_plan_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"does not say which.*nmstep\.pack\(model, pattern\)"):
        pack_file(tmp_path / "plain.safetensors", tmp_path / "packed.safetensors")


def test_what_is_packed_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    pack_file(checkpoint, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=r"packed already: nmstep\.export_dense"):
        pack_file(tmp_path / "p.safetensors", tmp_path / "q.safetensors")


def test_what_is_not_sparse_is_refused(trained: nn.Module, checkpoint: Path) -> None:
    plan = json.dumps(nmstep.plan(trained, "1:4").to_dict())
    save_file(trained.state_dict(), checkpoint / "model.safetensors", {"nm_sparsity": plan})
    with pytest.raises(nmstep.NotSparseError, match=r"0\.weight"):
        pack_file(checkpoint, checkpoint / "packed.safetensors")
    assert not (checkpoint / "packed.safetensors").exists()


def test_tensors_of_several_names_come_back(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"in": nn.Embedding(24, 16), "a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
        model["out"] = nn.Linear(16, 24, bias=False)
        model["b"].weight, model["out"].weight = model["a"].weight, model["in"].weight
        return model

    torch.manual_seed(0)
    model = tied()
    with torch.no_grad():
        model["a"].weight.mul_(nmstep.nm_mask(model["a"].weight, "2:4"))  # type: ignore[index]
    save_weights(model, tmp_path / "model.safetensors", plan=nmstep.plan(model, "2:4"))
    packed = pack_file(tmp_path / "model.safetensors", tmp_path / "packed.safetensors")
    assert sorted(packed.layers) == ["a", "b"]
    assert packed.packed < packed.dense + 3000
    loaded = nmstep.load_packed(packed.path, tied())
    unpacked = nmstep.unpack(loaded).state_dict()
    assert all(torch.equal(unpacked[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int16, torch.float64])
def test_dtypes_that_values_are_not_held_in(checkpoint: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"not in {dtype}"):
        pack_file(checkpoint, checkpoint / "packed.safetensors", dtype=dtype)


def test_names_that_a_wrapper_gave(trained: nn.Module, checkpoint: Path) -> None:
    plan = json.dumps(nmstep.plan(trained, "2:4").to_dict())
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in trained.state_dict().items()}
    save_file(wrapped, checkpoint / "model.safetensors", {"nm_sparsity": plan})
    packed = pack_file(checkpoint, checkpoint / "packed.safetensors", dtype=torch.bfloat16)
    assert sorted(packed.layers) == ["0", "2", "3.linear1", "3.linear2"]
    assert packed.dense == sum(t.nbytes for t in trained.state_dict().values())
    nmstep.load_packed(packed.path, model())


@pytest.mark.parametrize("name", ["0.values", "4.bias"])
def test_what_was_written_is_read_back(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = checkpoint / "packed.safetensors"
    before = pack_file(checkpoint, path).path.read_bytes()
    save = safetensors.torch.save_file

    def damaging(tensors: dict[str, torch.Tensor], *arguments: Any, **more: Any) -> None:
        save({**tensors, name: tensors[name] + 1}, *arguments, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", damaging)
    with pytest.raises(RuntimeError, match=f"'{name.split('.')[0]}.*reads differently"):
        pack_file(checkpoint, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in checkpoint.iterdir()) == ["model.safetensors", "packed.safetensors"]


def test_weights_that_are_no_numbers_are_read_back_too(trained: nn.Module, checkpoint: Path) -> None:
    state = trained.state_dict()
    state["2.weight"][0, :4] = torch.tensor([float("nan"), 0.0, -0.0, float("inf")])
    plan = json.dumps(nmstep.plan(trained, "2:4").to_dict())
    save_file(state, checkpoint / "model.safetensors", {"nm_sparsity": plan})
    loaded = nmstep.load_packed(pack_file(checkpoint, checkpoint / "packed.safetensors").path, model())
    assert packed_layers(loaded)["2"].weight[0, :4].isfinite().tolist() == [False, True, True, False]
