import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import nmstep
from nmstep.bench import load_subject, sizes
from nmstep.deploy import pack_file, packed_layers
from nmstep.experiments import RunConfig, run


def patterns(subject):
    return {name: str(layer.pattern) for name, layer in packed_layers(subject.packed).items()}


def agree(subject):
    """Whether dense and packed compute the same."""
    use = subject.use(2)
    with torch.no_grad():
        results = [getattr(out, "logits", out) for out in (use(subject.dense), use(subject.packed))]
    return torch.allclose(*results, atol=1e-4)


@pytest.fixture
def run_folder(tmp_path):
    def train(recipe="ste"):
        pattern = None if recipe == "dense" else "1:16"
        config = RunConfig(
            task="digits",
            recipe=recipe,
            pattern=pattern,
            exclude=("conv1",) if pattern else (),
            steps=4,
            batch_size=8,
        )
        run(config, tmp_path / recipe)
        return tmp_path / recipe

    return train


def test_a_run_folder(run_folder):
    folder = run_folder()
    subject = load_subject(folder)
    assert patterns(subject) == dict.fromkeys(("conv2", "conv3", "head"), "1:16")
    assert (subject.decoded, subject.file, subject.what) == (None, None, "one of task 'digits'")
    assert agree(subject)
    stored = nmstep.verify(folder)
    assert stored.ok
    assert subject.summary() == f"{folder}: 3 layers 1:16 in float32"
    with pytest.raises(ValueError, match="examples of task 'digits' have their own length"):
        load_subject(folder, tokens=3)
    narrow = load_subject(folder, dtype=torch.bfloat16)
    assert {layer.values_dtype for layer in packed_layers(narrow.packed).values()} == {torch.bfloat16}


def test_a_packed_file_beside_its_run(run_folder):
    folder = run_folder()
    file = folder / "packed.safetensors"
    pack_file(folder, file)
    subject = load_subject(file)
    assert subject.file == file
    dense = load_subject(folder).dense.state_dict()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in subject.dense.state_dict().items())
    assert agree(subject)
    with pytest.raises(ValueError, match=r"the kept weights in .* have theirs already"):
        load_subject(file, dtype=torch.bfloat16)


def test_a_dense_run_is_refused(run_folder):
    with pytest.raises(ValueError, match="is dense, there is nothing to pack"):
        load_subject(run_folder("dense"))


@pytest.mark.parametrize("promise", [True, False])
def test_a_folder_of_transformers(bert, saved, promise):
    include = ("bert.encoder.layer.0",)
    subject = load_subject(saved(bert, include, promise=promise), tokens=9)
    assert type(subject.dense) is type(bert)
    assert set(patterns(subject).values()) == {"2:4"}
    assert len(patterns(subject)) == 6
    assert all(name.startswith("bert.encoder.layer.0") for name in patterns(subject))
    assert all(torch.equal(t, bert.state_dict()[name]) for name, t in subject.dense.state_dict().items())
    assert subject.what == "9 tokens"
    assert agree(subject)
    assert not any(p.requires_grad for p in subject.dense.parameters())
    assert not subject.packed.training


def test_what_the_folder_says_counts_more_than_zeros(bert, saved):
    # Weights that are 2:4 by accident too stay as the plan has them.
    folder = saved(bert, ("bert.encoder.layer.0",), pattern="1:4")
    plan = nmstep.plan(bert, "2:4", include=("bert.encoder.layer.0",))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"nm_sparsity": plan.to_dict()}))
    assert set(patterns(load_subject(folder)).values()) == {"2:4"}


def test_weights_in_bfloat16_are_packed_in_it(gpt2, saved):
    folder = saved(gpt2.to(torch.bfloat16), ("transformer.h.*",))
    subject = load_subject(folder, tokens=4)
    assert {layer.values_dtype for layer in packed_layers(subject.packed).values()} == {torch.bfloat16}
    assert {p.dtype for p in subject.dense.parameters()} == {torch.float32}
    assert subject.decoded == 4
    assert subject.use(1)(subject.packed).shape == (1, 12)


def test_a_packed_file_of_transformers_needs_no_dense_one_beside_it(gpt2, saved):
    folder = saved(gpt2, ("transformer.h.*",))
    nmstep.save_packed(nmstep.pack(gpt2.eval()), folder / "small.safetensors")
    (folder / "model.safetensors").unlink()
    subject = load_subject(folder / "small.safetensors", tokens=2)
    assert len(patterns(subject)) == 8
    assert subject.dense.lm_head.weight is subject.dense.transformer.wte.weight
    assert torch.equal(subject.dense.transformer.h[1].mlp.c_fc.weight, gpt2.transformer.h[1].mlp.c_fc.weight)


@pytest.mark.parametrize("name", ["bert-base", "gpt2"])
def test_models_of_a_size(name, transformers, small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    smaller = SimpleNamespace(
        BertConfig=partial(transformers.BertConfig, **small),
        BertModel=transformers.BertModel,
        GPT2Config=partial(transformers.GPT2Config, **small),
        GPT2LMHeadModel=transformers.GPT2LMHeadModel,
    )
    monkeypatch.setattr(sizes, "require", lambda *_: smaller)
    subject = load_subject(Path(name), pattern="1:8", tokens=3)
    layers = patterns(subject)
    assert len(layers) == {"bert-base": 12, "gpt2": 8}[name]
    assert set(layers.values()) == {"1:8"}
    weights = {n: p for n, p in subject.dense.named_parameters() if n.removesuffix(".weight") in layers}
    for weight in weights.values():
        assert int(weight.count_nonzero()) == weight.numel() // 8


def test_resnet18_has_2_4_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject = load_subject(Path("resnet18"))
    assert set(patterns(subject).values()) == {"2:4"}
    assert len(patterns(subject)) == 19
    assert agree(subject)


@pytest.mark.parametrize(
    ("files", "path", "error", "message"),
    [
        ({}, "bert-bose", FileNotFoundError, "there is no 'bert-bose': did you mean 'bert-base'"),
        ({"d/x.txt": ""}, "d", FileNotFoundError, "nothing to measure at 'd': expected a folder"),
        (
            {"d/config.json": "{}", "d/x.pt": ""},
            "d/x.pt",
            FileNotFoundError,
            "nothing to measure at 'd/x.pt'",
        ),
        ({"d/config.json": "[]"}, "d", ValueError, "is damaged: expected a JSON object"),
        (
            {"d/config.json": '{"model_type": "bert", "architectures": ["Own"]}'},
            "d",
            ValueError,
            "'d' is of class 'Own', which is no model of transformers",
        ),
        (
            {"d/config.json": '{"model_type": "bert", "architectures": ["utils"]}'},
            "d",
            ValueError,
            "'d' is of class 'utils', which is no model of transformers",
        ),
    ],
)
def test_what_cannot_be_measured(files, path, error, message, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        load_subject(Path(path))


def test_arguments_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="--pattern is for models of a size"):
        load_subject(tmp_path, pattern="2:4")
    with pytest.raises(ValueError, match="--tokens 0: expected at least 1"):
        load_subject(tmp_path, tokens=0)
    with pytest.raises(ValueError, match="cannot read pattern"):
        load_subject(Path("resnet18"), pattern="2-4")


def test_a_model_that_does_not_take_the_inputs_is_said_so(bert, saved, monkeypatch):
    folder = saved(bert, ("bert.encoder.layer.0",))
    monkeypatch.setattr(type(bert), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match=r"cannot be used with inputs made up for it \(40 tokens\): ZeroDiv"):
        load_subject(folder)


def test_a_run_of_a_language_task_decodes(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "wiki").mkdir()
    for split in ("train", "valid", "test"):
        text = " \n = Title = \n \n" + " the cat sees a red house and runs . \n" * 40
        (tmp_path / "wiki" / f"wiki.{split}.raw").write_text(text)
    sizes = {"model": "config", "layers": 1, "width": 16, "heads": 2, "context": 16, "vocabulary": 270}
    config = RunConfig(
        task="wikitext-2",
        data=str(tmp_path / "wiki"),
        task_options=sizes,
        recipe="ste",
        pattern="2:4",
        steps=2,
        batch_size=2,
    )
    run(config, tmp_path / "run")
    subject = load_subject(tmp_path / "run")
    assert (subject.decoded, len(patterns(subject))) == (8, 4)
    assert subject.use(3)(subject.packed).shape == (3, 16)


@pytest.mark.usefixtures("transformers")
def test_code_in_a_folder_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    names = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config = {"model_type": "evil", "architectures": ["Model"], "auto_map": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trust_remote_code|contains custom code"):
        load_subject(tmp_path)
    assert not (tmp_path / "ran").exists()
