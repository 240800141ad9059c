import json

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file

from nmstep import tasks


@pytest.fixture
def run(nmstep, small):
    """A finished run in r."""
    assert nmstep("train", "--recipe", "ste", "--out", "r", *small)[0] == 0


def files(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.usefixtures("run")
def test_a_run_is_exported_in_both_formats(nmstep, tmp_path):
    pytest.importorskip("onnxruntime")
    status, out, err = nmstep("export", "r", "--out", "e", "--format", "dense", "onnx")
    assert (status, err) == (0, "")
    assert "read back: 3 weights 1:16, equal to the source" in out
    assert "onnxruntime differs from torch by" in out
    assert "Inputs: x batch x 1 x 8 x 8" in out
    assert "sparse kernels for 3 of 3 weights: trtexec --onnx=e/model.onnx --sparsity=enable" in out
    assert files(tmp_path / "e") == ["config.json", "model.onnx", "model.safetensors"]
    assert files(tmp_path) == ["e", "r"]
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert config["nmstep_run"] == json.loads((tmp_path / "r" / "config.json").read_text())
    written, trained = (load_file(tmp_path / name / "model.safetensors") for name in ("e", "r"))
    assert written.keys() == trained.keys()
    assert all(torch.equal(written[name], trained[name]) for name in written)
    load_model(tasks.load("digits").model(), tmp_path / "e" / "model.safetensors")
    for target in ("e", "e/model.onnx"):
        assert nmstep("verify", target)[0] == 0

    status, _, err = nmstep("export", "r", "--out", "e")
    assert status == 2
    assert "a folder that is not empty" in err
    assert files(tmp_path / "e") == ["config.json", "model.onnx", "model.safetensors"]


@pytest.mark.usefixtures("run")
def test_files_are_exported_without_their_model(nmstep, tmp_path):
    for source in ("packed", "model"):
        status, out, _ = nmstep("export", f"r/{source}.safetensors", "--out", source)
        assert status == 0
        assert f"safetensors.torch.load_model(model, '{source}/model.safetensors')" in out
        assert nmstep("verify", source)[0] == 0
        load_model(tasks.load("digits").model(), tmp_path / source / "model.safetensors")
    a, b = (load_file(tmp_path / source / "model.safetensors") for source in ("packed", "model"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("source", ["r", "r/model.safetensors"])
def test_what_is_not_sparse_is_not_exported(nmstep, tmp_path, source):
    path = tmp_path / "r" / "model.safetensors"
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors["head.weight"][3, 16:32] = 1.0
    save_file(tensors, path, metadata)
    if source == "r":  # the run knows what it wrote
        assert (
            "does not have the hash that result.json beside it records"
            in nmstep("export", "r", "--out", "e")[2]
        )
        (tmp_path / "r" / "result.json").unlink()
    status, _, err = nmstep("export", source, "--out", "e")
    assert status == 2
    assert "'head.weight'" in err
    assert "[3, 16:32]" in err
    assert not (tmp_path / "e").exists()


def test_a_run_of_a_transformers_model(nmstep, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 200)
    options = ["layers=1", "width=16", "heads=2", "context=12", "vocabulary=280"]
    flags = ["--recipe", "ste", "--pattern", "2:4", "--steps", "2", "--batch-size", "4", "--threads", "1"]
    task = ["--task", "mlm", "--data", "text.txt", "--task-options", *options]
    assert nmstep("train", *task, *flags, "--out", "r")[0] == 0
    status, out, err = nmstep("export", "r", "--out", "e", "--format", "onnx", "dense")
    assert (status, err) == (0, "")
    assert "transformers.BertForMaskedLM.from_pretrained('e')" in out
    assert "batch x 12" in out
    status, out, err = nmstep("export", "e", "--out", "again")  # a folder, without its run
    assert (status, err) == (0, "")
    assert "transformers.BertForMaskedLM.from_pretrained('again')" in out
    transformers.BertForMaskedLM.from_pretrained(tmp_path / "again")
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path / "e")
    trained = load_file(tmp_path / "r" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.items())
    assert nmstep("verify", "e")[0] == nmstep("verify", "e/model.onnx")[0] == 0
