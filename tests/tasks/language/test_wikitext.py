import math
import os
import random
import socket

import pytest
import torch

import nmstep
import nmstep.tasks
from nmstep.tasks.language.subwords import Subwords

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
SMALL = {"model": "config", "layers": 1, "width": 16, "heads": 2, "context": 8, "vocabulary": 270}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def sentences(seed, count):
    draw = random.Random(seed)
    words = ["the", "cat", "dog", "sees", "a", "red", "house", "and", "runs"]
    return [" " + " ".join(draw.choices(words, k=draw.randint(4, 9))) + " . \n" for _ in range(count)]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "wiki"
    place.mkdir()
    for split, count, seed in (("train", 60, 0), ("valid", 12, 1), ("test", 12, 2)):
        lines = sentences(seed, count)
        text = " \n".join(["", " = Title = \n", *lines])
        (place / f"wiki.{split}.raw").write_text(text, newline="")
    return place


def load(place, name="wikitext-2", **options):
    return nmstep.tasks.load(name, data=str(place), **(SMALL | options))


@pytest.fixture
def checkpoint(tmp_path, folder):
    """A folder as `save_pretrained` writes it, with the tokenizer beside the weights."""
    task = load(folder)
    torch.manual_seed(1)
    model = task.model()
    place = tmp_path / "gpt2"
    model.save_pretrained(place)
    task.tokenizer.save(str(place / "tokenizer.json"))
    return place, model


def from_checkpoint(folder, place, **options):
    return nmstep.tasks.load("wikitext-2", data=str(folder), model=str(place), **options)


def test_targets_follow_inputs_in_the_text(folder):
    task = load(folder)
    batch = task.batch(3, seed=0, batch_size=4)
    assert batch.inputs.shape == batch.targets.shape == (4, 8)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    text = (folder / "wiki.train.raw").read_text().replace(" \n \n", " \n").removeprefix(" \n")
    for window in torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist():
        assert task.tokenizer.decode(window) in text


def test_batch_is_pure(folder):
    later = load(folder).batch(30, seed=2, batch_size=5)
    task = load(folder)
    task.batch(0, seed=2, batch_size=5)
    assert torch.equal(task.batch(30, seed=2, batch_size=5).inputs, later.inputs)
    assert not torch.equal(task.batch(30, seed=3, batch_size=5).inputs, later.inputs)


def by_hand(task, model, lines, stride):
    """Perplexity by the loop of the transformers documentation, from the library's own loss."""
    tokens = torch.tensor([t for line in lines for t in task.tokenizer.encode([line])[0].tolist()])
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + 8, len(tokens))
        labels = tokens[begin:end].clone()
        labels[: -(end - previous_end)] = -100
        scored = int((labels[1:] != -100).sum())
        if scored:
            out = model(input_ids=tokens[begin:end].unsqueeze(0), labels=labels.unsqueeze(0))
            total, count = total + out.loss.item() * scored, count + scored
        previous_end = end
        if end == len(tokens):
            break
    return total / count, len(tokens)


@pytest.mark.parametrize(("split", "stride"), [("test", None), ("valid", 3), ("test", 8)])
def test_perplexity_equals_the_loop_of_the_transformers_documentation(folder, split, stride):
    task = load(folder, split=split, stride=stride)
    torch.manual_seed(0)
    model = task.model()
    for parameter in model.parameters():
        parameter.data *= 5  # far from uniform, so that a wrong window shows
    scores = task.evaluate(model)
    lines = [" = Title = \n", *sentences({"valid": 1, "test": 2}[split], 12)]
    with torch.no_grad():
        mean, tokens = by_hand(task, model.eval(), lines, stride or 4)
    words = sum(len(line.split()) + 1 for line in lines)
    assert scores["loss"] == pytest.approx(mean, rel=1e-4)
    assert scores["perplexity"] == pytest.approx(math.exp(mean), rel=1e-3)
    assert scores["word_perplexity"] == pytest.approx(math.exp(mean * tokens / words), rel=1e-3)


def test_word_perplexity_does_not_depend_on_the_tokenizer(folder):
    # A model that gives every byte 1 / 512, and a token the product of its bytes', is the same for all.
    def word_perplexity(vocabulary):
        task = load(folder, vocabulary=vocabulary, stride=7)
        lengths = torch.tensor([len(task.tokenizer.decode([t])) for t in range(task.tokenizer.size)]).float()
        unigram = lengths * -math.log(512)

        class Unigram(torch.nn.Module):
            def forward(self, input_ids, logits_to_keep=0):
                # An extra last column takes the rest of the probability.
                rest = (1 - unigram.exp().sum()).log().reshape(1)
                row = torch.cat([unigram, rest]).expand(*input_ids[:, -logits_to_keep:].shape, -1)
                return type("Output", (), {"logits": row})

        return task.evaluate(Unigram())["word_perplexity"]

    # Only the first token, of unlike length, is not scored.
    assert word_perplexity(257) == pytest.approx(word_perplexity(262), rel=0.05)


def test_test_tokens_scores_whole_lines_from_the_start(folder):
    task = load(folder, test_tokens=60)
    shown = []

    class Shown(torch.nn.Module):
        def forward(self, input_ids, logits_to_keep=0):
            shown.append(input_ids)
            return type("Output", (), {"logits": torch.zeros(len(input_ids), logits_to_keep, 270)})

    scores = task.evaluate(Shown())
    assert scores["perplexity"] == pytest.approx(270)
    _, counts = task.tokenizer.encode([" = Title = \n", *sentences(2, 12)])
    kept = int(sum(total <= 60 for total in counts.cumsum(0).tolist()))
    assert 1 < kept < 12
    words = sum(len(line.split()) + 1 for line in [" = Title = \n", *sentences(2, 12)][:kept])
    assert scores["word_perplexity"] == pytest.approx(270 ** (int(counts[:kept].sum()) / words), rel=1e-6)
    with pytest.raises(ValueError, match=r"test_tokens=1 leaves 0 tokens to score: the first line has \d+"):
        load(folder, test_tokens=1)


def test_sparsity_is_on_every_conv1d_and_nothing_else(folder):
    task = load(folder)
    plan = nmstep.plan(task.model(), "2:4", include=task.defaults.include)
    sparse = {entry.name: entry.dim for entry in plan.entries if entry.pattern is not None}
    ends = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert sparse == {f"transformer.h.0.{end}.weight": 0 for end in ends}


def test_pretraining_and_fine_tuning_share_a_vocabulary(folder, tmp_path):
    (tmp_path / "more.txt").write_text("other words stand here , other words\n" * 40)
    pretrain = load(folder, train_text=str(tmp_path / "more.txt"))
    finetune = load(folder, tokenizer_text=str(tmp_path / "more.txt"))
    text = ["the cat , other words stand\n"]
    tokens = pretrain.tokenizer.encode(text)[0]
    assert torch.equal(tokens, finetune.tokenizer.encode(text)[0])
    assert len(tokens) < len(load(folder).tokenizer.encode(text)[0])
    assert "other" in pretrain.tokenizer.decode(
        pretrain.batch(0, seed=0, batch_size=60).inputs.flatten().tolist()
    )
    assert "other" not in finetune.tokenizer.decode(
        finetune.batch(0, seed=0, batch_size=60).inputs.flatten().tolist()
    )
    pretrain.tokenizer.save(str(tmp_path / "tokenizer.json"))
    given = nmstep.tasks.load(
        "wikitext-2",
        data=str(folder),
        **({k: v for k, v in SMALL.items() if k != "vocabulary"} | {"tokenizer": str(tmp_path)}),
    )
    assert torch.equal(tokens, given.tokenizer.encode(text)[0])


def test_other_text_stands_in_for_a_missing_training_split(folder):
    (folder / "train.txt").write_text("other words stand here\n" * 40)
    (folder / "wiki.train.raw").unlink()
    task = load(folder, "wikitext-103", train_text=str(folder / "train.txt"))
    assert task.name == "wikitext-103"
    batch = task.batch(0, seed=0, batch_size=1)
    seen = task.tokenizer.decode(batch.inputs[0].tolist()).replace("\n", " ")
    assert seen.strip() in "other words stand here " * 40
    with pytest.raises(FileNotFoundError, match=r"WikiText-103 folder .* no wiki.train.raw"):
        load(folder, "wikitext-103")


def test_a_checkpoint_brings_weights_sizes_and_tokenizer(folder, checkpoint):
    place, saved = checkpoint
    task = from_checkpoint(folder, place)
    model = task.model()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), saved.parameters(), strict=True))
    assert task.batch(0, seed=0, batch_size=2).inputs.shape == (2, 8)
    assert task.evaluate(model) == load(folder).evaluate(saved)
    assert task.defaults.lr == 5e-5
    # Three epochs in batches of 8, the last one full.
    windows = (len(task.tokenizer.encode([" = Title = \n", *sentences(0, 60)])[0]) - 8) // 8
    assert task.defaults.steps == math.ceil(3 * windows / 8)
    assert model.config.attn_pdrop == 0
    assert from_checkpoint(folder, place, dropout=0.3).model().config.resid_pdrop == 0.3
    assert all(module.training for module in model.modules())  # transformers loads without dropout
    assert from_checkpoint(folder, place, context=4).batch(0, seed=0, batch_size=1).inputs.shape == (1, 4)


def test_a_checkpoint_that_does_not_fit_is_refused(folder, checkpoint, tmp_path):
    place, _ = checkpoint
    Subwords.learn(sentences(5, 80), vocabulary=290).save(str(tmp_path / "other.json"))
    with pytest.raises(
        ValueError, match=r"the tokenizer has 284 tokens, but the checkpoint .* knows 270: give"
    ):
        from_checkpoint(folder, place, tokenizer=str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match=r"context=9: the checkpoint .* takes 2 to 8"):
        from_checkpoint(folder, place, context=9)
    with pytest.raises(
        ValueError, match=r"layers and vocabulary shape a new model, but model='.*' is a check"
    ):
        from_checkpoint(folder, place, layers=1, vocabulary=300)
    (place / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: .* put its tokenizer.json there"):
        from_checkpoint(folder, place)


def test_a_checkpoint_of_another_model_or_none_is_refused(folder, checkpoint, tmp_path):
    place, _ = checkpoint
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(**tiny)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"is a 'bert' checkpoint, but this task takes a GPT-2"):
        from_checkpoint(folder, tmp_path / "bert")
    with pytest.raises(
        FileNotFoundError, match=r"no GPT-2 checkpoint at model='.*none': there is no such fol"
    ):
        from_checkpoint(folder, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no GPT-2 checkpoint at model='.*empty'.*model='config'"):
        from_checkpoint(folder, tmp_path / "empty")
    task = from_checkpoint(folder, place)
    (place / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in the checkpoint model='.*gpt2'"):
        task.model()


def test_missing_weights_are_named(folder, checkpoint):
    place, saved = checkpoint
    state = {name: tensor for name, tensor in saved.state_dict().items() if "mlp" not in name}
    saved.save_pretrained(place, state_dict=state)
    with pytest.raises(
        ValueError, match=r"of another model: transformer.h.0.mlp.c_fc.bias, .* missing in it"
    ):
        from_checkpoint(folder, place).model()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width=16 cannot be split over heads=3"),
        ({"layers": 0}, "layers=0 is too small: it must be at least 1"),
        ({"context": 1}, "context=1 is too small: it must be at least 2"),
        ({"dropout": 1.0}, "dropout=1.0: expected a share from 0"),
        ({"stride": 9}, "stride=9: expected 1 to context=8"),
        ({"split": "train"}, "unknown split 'train': choose 'valid' or 'test'"),
        ({"context": 4000}, "has .* tokens, but context=4000 needs 8000"),
        ({"tokenizer": "t.json"}, "tokenizer='t.json' is already learned: leave out vocabulary"),
    ],
)
def test_a_bad_option_is_refused_on_loading(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **options)


def test_training_lowers_perplexity_under_autocast(folder):
    torch.manual_seed(0)
    task = load(folder)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = task.evaluate(model)["perplexity"]
    for step in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(model, task.batch(step, seed=0, batch_size=8))
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
    assert task.evaluate(model)["perplexity"] < 0.3 * before
    assert not task.higher_is_better


@pytest.mark.skipif(
    "NMSTEP_DATA" not in os.environ, reason="NMSTEP_DATA names no folder with the real WikiText-2"
)
def test_the_real_text_has_the_published_number_of_words():
    task = nmstep.tasks.load("wikitext-2", data=os.environ["NMSTEP_DATA"], **SMALL)
    # The published 245,569 tokens count 1,467 blank lines too.
    assert task._words == 245_569 - 1_467
