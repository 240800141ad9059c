"""Dense exports: zeros in place, a plan beside them, and what transformers reads it keeps."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

import nmstep
from nmstep.deploy import exporting, pack_file
from nmstep.experiments.weights import save_weights

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def quiet() -> Any:
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def masked(model: nn.Module, pattern: str = "2:4") -> nn.Module:
    """Cuts the default plan's weights to a pattern, by sorting each group."""
    n, m = map(int, pattern.split(":"))
    for entry in plan_of(model, pattern).sparse:
        weight = model.get_parameter(entry.name).data
        groups = weight.movedim(entry.dim or 0, -1).unflatten(-1, (-1, m))
        lost = groups.abs().argsort(-1)[..., : m - n]
        groups = groups.scatter(-1, lost, 0.0)
        weight.copy_(groups.flatten(-2).movedim(-1, entry.dim or 0))
    return model


def plan_of(model: nn.Module, pattern: str) -> nmstep.SparsityPlan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nmstep.plan(model, pattern)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False))


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict({"in": nn.Embedding(24, 16), "a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model["out"] = nn.Linear(16, 24, bias=False)
    model["b"].weight, model["out"].weight = model["a"].weight, model["in"].weight
    return model


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertForMaskedLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_a_folder_says_itself_what_is_sparse(tmp_path: Path) -> None:
    model = masked(small())
    exported = nmstep.export_dense(model, tmp_path / "out", pattern="2:4")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert same(tensors, model.state_dict())
    assert int((tensors["0.weight"] == 0).sum()) == 64
    assert exported.report.target == str(tmp_path / "out")
    assert exported.size == sum(t.nbytes for t in tensors.values())
    entries = json.loads((tmp_path / "out" / "config.json").read_text())["nm_sparsity"]["entries"]
    told = {entry["name"]: (entry["pattern"], entry["dim"]) for entry in entries}
    assert told["0.weight"] == told["3.weight"] == ("2:4", 1)
    assert told["1.weight"] == told["0.bias"] == (None, None)
    report = nmstep.verify(tmp_path / "out")
    assert {t.name for t in report.checked} == {"0.weight", "3.weight"}
    tensors["0.weight"][5, 4:8] = 1.0
    save_file(tensors, tmp_path / "out" / "model.safetensors")
    with pytest.raises(nmstep.NotSparseError, match=r"'0\.weight'.*\[5, 4:8\]"):
        nmstep.verify(tmp_path / "out").raise_if_failed()


def test_a_packed_model_is_unpacked_and_keeps_the_patterns_that_it_was_packed_with(tmp_path: Path) -> None:
    model = masked(small(), "1:4")  # which is 2:4 too
    nmstep.export_dense(nmstep.pack(model, "2:4"), tmp_path / "out")
    assert same(load_file(tmp_path / "out" / "model.safetensors"), model.state_dict())
    assert {str(t.pattern) for t in nmstep.verify(tmp_path / "out").checked} == {"2:4"}
    nmstep.export_dense(model, tmp_path / "found")
    assert {str(t.pattern) for t in nmstep.verify(tmp_path / "found").checked} == {"1:4"}


def test_hooks_and_a_compiled_model_do_not_matter(tmp_path: Path) -> None:
    model = masked(small())
    model[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    nmstep.export_dense(torch.compile(model, backend="eager"), tmp_path / "out")  # type: ignore[arg-type]
    assert same(load_file(tmp_path / "out" / "model.safetensors"), model.state_dict())


@pytest.mark.parametrize("make", [bert, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_models_go_round(tmp_path: Path, make: Callable[[], Any], dtype: torch.dtype) -> None:
    model = masked(make().to(dtype)).eval()
    exported = nmstep.export_dense(model, tmp_path / "one", pattern="2:4", config={"note": "ours"})
    assert not hasattr(model.config, "nm_sparsity")
    loaded = type(model).from_pretrained(tmp_path / "one", dtype="auto")
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    loaded.save_pretrained(tmp_path / "two")
    for folder in ("one", "two"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert (config["note"], config["nm_sparsity"]) == (
            "ours",
            json.loads(json.dumps(exported.plan.to_dict())),
        )
        report = nmstep.verify(tmp_path / folder)
        assert report.ok
        assert len(report.checked) == len(exported.plan.sparse) >= 4
    with torch.no_grad():  # trained on without masks, and saved again: its promise no longer holds
        loaded.get_parameter(exported.plan.sparse[0].name).fill_(1.0)
    loaded.save_pretrained(tmp_path / "three")
    assert not nmstep.verify(tmp_path / "three").ok


def test_a_packed_transformers_model(tmp_path: Path) -> None:
    model = masked(gpt2())
    nmstep.export_dense(nmstep.pack(model, "2:4"), tmp_path / "out")
    assert same(type(model).from_pretrained(tmp_path / "out").state_dict(), model.state_dict())


def test_a_hugging_face_folder_keeps_its_configuration(tmp_path: Path) -> None:
    model = masked(bert())
    nmstep.export_dense(model, tmp_path / "one", pattern="2:4")
    pack_file(tmp_path / "one", tmp_path / "one" / "packed.safetensors")
    for source in (tmp_path / "one", tmp_path / "one" / "packed.safetensors"):
        out = tmp_path / source.stem / "again"
        nmstep.export_dense(source, out)
        assert same(type(model).from_pretrained(out).state_dict(), model.state_dict())
        assert nmstep.verify(out).ok


@pytest.mark.parametrize("form", ["safetensors", "pt", "packed"])
def test_checkpoints_without_their_model(tmp_path: Path, form: str) -> None:
    model = masked(tied(), "2:4")
    plan, path = plan_of(model, "2:4"), tmp_path / f"model.{form}"
    if form == "pt":
        wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"model": wrapped, "nm_sparsity": plan.to_dict()}, path)
    else:
        path = path.with_suffix(".safetensors")
        save_weights(model, path, plan=plan)
    if form == "packed":
        path = pack_file(path, tmp_path / "packed.safetensors").path
    exported = nmstep.export_dense(path, tmp_path / "out")
    assert [tensor.name for tensor in exported.report.checked] == ["a.weight"]
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 4
    other = tied()
    load_model(other, tmp_path / "out" / "model.safetensors")
    assert same(other.state_dict(), model.state_dict())


def test_a_packed_file_of_other_patterns_is_refused(tmp_path: Path) -> None:
    nmstep.save_packed(nmstep.pack(masked(small())), tmp_path / "packed.safetensors")
    with pytest.raises(nmstep.NotSparseError, match=r"0\.weight.*1:4"):
        nmstep.export_dense(tmp_path / "packed.safetensors", tmp_path / "out", pattern="1:4")


def test_what_is_not_sparse_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = masked(small())
    with torch.no_grad():
        model[0].weight[3, 8:12] = 1.0  # type: ignore[index]
    save_weights(model, tmp_path / "model.safetensors", plan=plan_of(model, "2:4"))
    for source in (model, tmp_path / "model.safetensors"):
        with pytest.raises(nmstep.NotSparseError, match=r"'0\.weight'.*\[3, 8:12\] = \(1, 1, 1, 1\)"):
            nmstep.export_dense(source, tmp_path / "out", plan=plan_of(model, "2:4"))
    with pytest.raises(ValueError, match="is N:M"):
        nmstep.export_dense(small(), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"does not say which.*nmstep\.export_dense\(model"):
        nmstep.export_dense(tmp_path / "plain.safetensors", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nothing to read"):
        nmstep.export_dense(tmp_path / "none", tmp_path / "out")
    with pytest.raises(TypeError, match="a module or a path, got a dict"):
        nmstep.export_dense({}, tmp_path / "out")  # type: ignore[arg-type]


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        nmstep.export_dense(masked(small()), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_damage_on_the_way_to_the_disk_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = exporting.write_tensors

    def damaging(tensors: dict[str, Tensor], *arguments: Any) -> int:
        return write({**tensors, "1.running_mean": tensors["1.running_mean"] + 1}, *arguments)

    monkeypatch.setattr(exporting, "write_tensors", damaging)
    with pytest.raises(ValueError, match=r"'1\.running_mean' reads differently"):
        nmstep.export_dense(masked(small()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"safetensors is needed for exports.*nmstep\[cli\]"):
        nmstep.export_dense(masked(small()), tmp_path / "out")
