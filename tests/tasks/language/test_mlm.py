import json
import math
import os
import random
from pathlib import Path

import pytest
import torch

import nmstep
import nmstep.tasks
from nmstep.tasks.language.masking import Masking
from nmstep.tasks.language.subwords import Subwords
from nmstep.tasks.order import generator

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
SMALL = {"layers": 1, "width": 16, "heads": 2, "context": 12, "vocabulary": 280}
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture
def story(tmp_path):
    draw = random.Random(0)
    words = ["the", "cat", "dog", "sees", "a", "red", "house", "and", "runs"]
    path = tmp_path / "story.txt"
    lines = [" ".join(draw.choices(words, k=draw.randint(4, 9))) + " .\n" for _ in range(120)]
    path.write_text("".join(lines))
    return path


def load(path, **options):
    return nmstep.tasks.load("mlm", data=str(path), **(SMALL | options))


def test_a_sequence_is_framed_and_its_share_masked(story):
    task = load(story, mask=0.3)
    batch = task.batch(0, seed=0, batch_size=20)
    assert batch.inputs.shape == batch.targets.shape == (20, 12)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert (batch.inputs[:, 0] == CLS).all()
    assert (batch.inputs[:, -1] == SEP).all()
    masked = batch.targets != -100
    assert masked.sum(1).tolist() == [3] * 20  # 30 % of the 10 tokens between
    assert not masked[:, [0, -1]].any()
    # What is not masked, with the targets put back, is the text.
    text = story.read_text()
    original = torch.where(masked, batch.targets, batch.inputs)
    for row in original[:, 1:-1].tolist():
        assert task.tokenizer.decode(row) in text


def test_eight_of_ten_are_masked_one_is_random_one_stays():
    masking = Masking(share=0.15, cls=2, sep=3, mask=4, ordinary=torch.arange(5, 1005))
    tokens = torch.randint(5, 1005, (400, 100), generator=torch.Generator().manual_seed(0))
    inputs, targets = masking.apply(tokens, generator("test", 0))
    chosen = targets[:, 1:-1] != -100
    assert chosen.sum() == 400 * 15
    # Each place is as likely as another: 60 of 400 expected, standard deviation 7.
    assert chosen.sum(0).min() > 60 - 5 * 7.2
    assert chosen.sum(0).max() < 60 + 5 * 7.2
    assert torch.equal(inputs[:, 1:-1][~chosen], tokens[~chosen])
    assert torch.equal(targets[:, 1:-1][chosen], tokens[chosen])
    shown, right = inputs[:, 1:-1][chosen], tokens[chosen]
    shares = [(shown == 4).sum(), ((shown != 4) & (shown != right)).sum(), (shown == right).sum()]
    assert [int(share) / 6000 for share in shares] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert shown[shown != 4].min() >= 5


def test_batch_is_pure_and_masks_are_drawn_anew(story):
    later = load(story).batch(30, seed=2, batch_size=5)
    task = load(story)
    task.batch(0, seed=2, batch_size=5)
    again = task.batch(30, seed=2, batch_size=5)
    assert torch.equal(again.inputs, later.inputs)
    assert torch.equal(again.targets, later.targets)
    assert not torch.equal(task.batch(30, seed=3, batch_size=5).inputs, later.inputs)
    places = {
        tuple((task.batch(step, seed=2, batch_size=1).targets[0] != -100).tolist()) for step in range(20)
    }
    assert len(places) > 5


def test_loss_and_scores_equal_the_whole_models_output(story):
    task = load(story)
    torch.manual_seed(0)
    model = task.model()
    for parameter in model.parameters():
        parameter.data *= 3
    batch = task.batch(0, seed=0, batch_size=7)
    expected = model(input_ids=batch.inputs, labels=batch.targets).loss
    assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    whole = task._validation
    with torch.no_grad():
        out = model.eval()(input_ids=whole.inputs, labels=whole.targets)
    masked = whole.targets != -100
    right = (out.logits.argmax(-1) == whole.targets)[masked].float().mean().item()
    scores = task.evaluate(model)
    assert scores["loss"] == pytest.approx(out.loss.item(), rel=1e-4)
    assert scores["perplexity"] == pytest.approx(math.exp(out.loss.item()), rel=1e-3)
    assert scores["accuracy"] == pytest.approx(100 * right)
    assert scores == load(story).evaluate(model)


def test_the_validation_text_is_scored_from_its_start(story):
    task = load(story, test_tokens=25)
    assert task._validation.inputs.shape == (2, 12)
    rest = story.read_bytes()[story.stat().st_size * 9 // 10 :].decode()
    original = torch.where(
        task._validation.targets != -100, task._validation.targets, task._validation.inputs
    )
    tokens = original[:, 1:-1].flatten().tolist()
    assert rest.startswith(task.tokenizer.decode(tokens))
    with pytest.raises(
        ValueError, match=r"has \d+ tokens, of which test_tokens=9 leaves less than the 10 of"
    ):
        load(story, test_tokens=9)


def test_sparsity_is_on_the_encoders_linear_layers_and_nothing_else(story):
    task = load(story, layers=2)
    plan = nmstep.plan(task.model(), "2:4", include=task.defaults.include)
    ends = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    ends += ("intermediate.dense", "output.dense")
    expected = {f"bert.encoder.layer.{layer}.{end}.weight" for layer in (0, 1) for end in ends}
    assert {entry.name for entry in plan.entries if entry.pattern is not None} == expected


def test_presets_have_the_published_sizes():
    for name, millions in (("bert-base", 109.5), ("bert-large", 335.2)):
        task = nmstep.tasks.load("mlm", model=name, vocabulary=300, context=64, test_tokens=200)
        with torch.device("meta"):
            model = task.model()
        # The published sizes, less what the vocabulary and positions are short of, with the head's transform
        # and bias in place of the pooler: 109,482,240 and 335,141,888 parameters of a BertModel.
        width = model.config.hidden_size
        extra = (30522 - task.tokenizer.size + 512 - 64) * width
        norm_and_bias = 2 * width + task.tokenizer.size
        whole = sum(p.numel() for p in model.parameters()) + extra - norm_and_bias
        assert whole == {"bert-base": 109_482_240, "bert-large": 335_141_888}[name]
        assert whole / 1e6 == pytest.approx(millions, abs=0.1)
        assert model.config.hidden_dropout_prob == 0.1
        assert task.defaults.batch_size == 256


def test_a_given_tokenizer_must_have_the_special_tokens(story, tmp_path):
    task = load(story)
    task.tokenizer.save(str(tmp_path / "tokenizer.json"))
    options = {name: value for name, value in SMALL.items() if name != "vocabulary"}
    again = nmstep.tasks.load("mlm", data=str(story), tokenizer=str(tmp_path), **options)
    batch = task.batch(0, seed=0, batch_size=4)
    assert torch.equal(again.batch(0, seed=0, batch_size=4).inputs, batch.inputs)
    with pytest.raises(ValueError, match="is already learned: leave out vocabulary=280"):
        load(story, tokenizer=str(tmp_path))
    Subwords.learn(["a b\n"], vocabulary=257, special=["[MASK]"]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"the tokenizer has no \[CLS\] and no \[SEP\]: give one of a BERT"):
        nmstep.tasks.load("mlm", data=str(story), tokenizer=str(tmp_path), **options)


def test_a_wordpiece_tokenizer_with_other_numbers_will_do(story, tmp_path):
    words = [
        "[SEP]",
        "the",
        "cat",
        "dog",
        "sees",
        "a",
        "[MASK]",
        "red",
        "house",
        "and",
        "runs",
        ".",
        "[UNK]",
        "[CLS]",
    ]
    content = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(words)},
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    options = {name: value for name, value in SMALL.items() if name != "vocabulary"}
    task = nmstep.tasks.load("mlm", data=str(story), tokenizer=str(tmp_path), **options)
    batch = task.batch(0, seed=0, batch_size=50)
    assert (batch.inputs[:, 0] == 13).all()
    assert (batch.inputs[:, -1] == 0).all()
    shown = batch.inputs[:, 1:-1][batch.targets[:, 1:-1] != -100]
    assert (shown == 6).float().mean() > 0.6
    assert not set(shown.tolist()) & {0, 12, 13}
    assert task.model().config.pad_token_id is None


def test_the_hub_name_is_wikitext_103(story, monkeypatch):
    datasets = pytest.importorskip("datasets")
    lines = story.read_text().splitlines(keepends=True)
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return {"train": {"text": ["", *lines]}, "validation": {"text": lines[:20]}, "test": {"text": []}}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load("Salesforce/wikitext")
    assert asked == [("Salesforce/wikitext", "wikitext-103-raw-v1")]
    assert len(task._stream) > len(load(story)._stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "bert-huge"}, "unknown model 'bert-huge': choose 'small', 'bert-base', 'bert-large'"),
        ({"mask": 0.0}, r"mask=0.0: expected a share above 0 and below 1, as in mask=0.15"),
        ({"mask": 1.0}, r"mask=1.0: expected a share"),
        ({"context": 2}, "context=2 is too small: it must be at least 3"),
        ({"heads": 3}, "width=16 cannot be split over heads=3"),
        ({"vocabulary": 260}, "vocabulary=260 is too small: 256 bytes and 5 special tokens need 261"),
        ({"context": 2000}, "has .* tokens, but context=1998 needs"),
    ],
)
def test_a_bad_option_is_refused_on_loading(story, options, message):
    with pytest.raises(ValueError, match=message):
        load(story, **options)


def test_training_lowers_the_loss_under_autocast(story):
    torch.manual_seed(0)
    task = load(story)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = task.evaluate(model)["loss"]
    for step in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(model, task.batch(step, seed=0, batch_size=16))
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
    assert task.evaluate(model)["loss"] < 0.7 * before
    assert not task.higher_is_better


@pytest.mark.skipif("NMSTEP_DATA" not in os.environ, reason="NMSTEP_DATA names no folder with real text")
def test_the_real_text_is_read():
    task = load(Path(os.environ["NMSTEP_DATA"]) / "text", test_tokens=5000)
    assert len(task._stream) > 100_000
