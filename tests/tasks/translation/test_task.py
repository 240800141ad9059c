import math
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nmstep
import nmstep.tasks

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")
SMALL = {"layers": 1, "width": 32, "heads": 2, "feed_forward": 64, "vocabulary": 300, "dropout": 0.0}
WORDS = {
    "ein": "a",
    "Hund": "dog",
    "Mann": "man",
    "Haus": "house",
    "geht": "goes",
    "groß": "big",
    "und": "and",
}


def write(folder, stem, source, target):
    (folder / f"{stem}.de").write_text("".join(f"{line}\n" for line in source), encoding="utf-8")
    (folder / f"{stem}.en").write_text("".join(f"{line}\n" for line in target), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """40 training and 6 test pairs: word by word translations of 1 to 8 words."""
    generator = torch.Generator().manual_seed(0)
    for stem, count in (("train", 40), ("test", 6)):
        drawn = [torch.randint(7, (1 + row % 8,), generator=generator).tolist() for row in range(count)]
        source = [" ".join(list(WORDS)[word] for word in row) for row in drawn]
        write(tmp_path, stem, source, [" ".join(WORDS[word] for word in line.split()) for line in source])
    return tmp_path


def load(folder, **options):
    return nmstep.tasks.load("wmt17-de-en", data=str(folder), **(SMALL | options))


def lines(folder, name):
    return (folder / name).read_text(encoding="utf-8").splitlines()


def decoded(task, rows):
    return [task._bpe.decode(row) for row in rows.tolist()]


def test_an_epoch_holds_every_pair_once(folder):
    task = load(folder)
    batches = [task.batch(step, seed=0, batch_size=8) for step in range(5)]
    got = [
        pair for b in batches for pair in zip(decoded(task, b.inputs), decoded(task, b.targets), strict=True)
    ]
    assert sorted(got) == sorted(zip(lines(folder, "train.de"), lines(folder, "train.en"), strict=True))


def test_a_batch_is_ended_padded_and_moved_by_one(folder):
    batch = load(folder).batch(3, seed=0, batch_size=40)
    begun = batch.extras["decoder_input"]
    assert {tensor.dtype for tensor in (batch.inputs, batch.targets, begun)} == {torch.int64}
    assert begun[:, 0].tolist() == [1] * 40
    assert torch.equal(begun[:, 1:], batch.targets[:, :-1])
    for rows in (batch.inputs, batch.targets):
        for row in rows.tolist():
            end = row.index(2)
            assert not any(row[end + 1 :])
            assert min(row[:end]) > 2
        assert (rows[:, -1] > 0).any()


def test_batch_is_pure_and_leaves_the_generator_alone(folder):
    task = load(folder)
    state = torch.get_rng_state()
    later = task.batch(9, seed=2, batch_size=7)
    assert torch.equal(torch.get_rng_state(), state)
    task.batch(0, seed=2, batch_size=5)
    again = load(folder).batch(9, seed=2, batch_size=7)
    assert torch.equal(task.batch(9, seed=2, batch_size=7).inputs, later.inputs)
    assert torch.equal(again.inputs, later.inputs)
    assert torch.equal(again.targets, later.targets)
    assert not torch.equal(task.batch(9, seed=3, batch_size=7).targets[:, :2], later.targets[:, :2])


def test_empty_and_long_training_pairs_are_left_out(folder):
    keep = "Hund und Haus", "dog and house"
    write(folder, "train", ["", "Mann", " ", "Hund " * 50, keep[0]], ["x", "", "man", "dog", keep[1]])
    task = load(folder, max_length=20)
    batch = task.batch(0, seed=0, batch_size=3)
    assert decoded(task, batch.inputs) == [keep[0]] * 3
    assert decoded(task, batch.targets) == [keep[1]] * 3
    with pytest.raises(ValueError, match=r"none of the 5 pairs of .* max_length=2 tokens; raise max_length"):
        load(folder, max_length=2)


def smoothed(logits, target, smoothing):
    """Cross-entropy with the target distribution (1 - s) one-hot + s uniform, over tokens that are no padding."""
    total, count = 0.0, 0
    for row, wanted in zip(logits.flatten(0, 1).double(), target.flatten().tolist(), strict=True):
        if wanted:
            log_probs = (row - row.max()) - (row - row.max()).exp().sum().log()
            distribution = torch.full_like(log_probs, smoothing / len(row))
            distribution[wanted] += 1 - smoothing
            total, count = total - float((distribution * log_probs).sum()), count + 1
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_training_loss_is_label_smoothed(folder, smoothing):
    task = load(folder, label_smoothing=smoothing)
    model = task.model()
    batch = task.batch(0, seed=0, batch_size=12)
    logits = model(batch.inputs, batch.extras["decoder_input"]).detach()
    expected = smoothed(logits, batch.targets, smoothing)
    assert task.loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_held_out_loss_is_not_smoothed_and_each_token_counts_once(folder, monkeypatch):
    monkeypatch.setattr("nmstep.tasks.translation.task._EVALUATED_AT_ONCE", 4)  # 4 pairs, then 2
    task = load(folder, label_smoothing=0.5)
    model = task.model()
    source, target = (side.select(torch.arange(6)) for side in task._test)
    begun = torch.cat([torch.ones(6, 1, dtype=torch.int64), target[:, :-1]], dim=1)
    expected = smoothed(model(source, begun).detach(), target, 0.0)
    assert task.evaluate(model)["loss"] == pytest.approx(expected, rel=1e-5)


def test_bleu_equals_a_hand_computation(folder, monkeypatch):
    references = lines(folder, "test.en")
    task = load(folder)
    model = task.model()
    monkeypatch.setattr(task, "translations", lambda _: references)
    assert task.evaluate(model)["bleu"] == pytest.approx(100)
    write(folder, "test", ["eins"], ["one two three four five"])
    task = load(folder)
    monkeypatch.setattr(task, "translations", lambda _: ["one two three four six"])
    by_hand = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)  # n-grams that match; the lengths are equal
    assert task.evaluate(model)["bleu"] == pytest.approx(100 * by_hand)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_trained_model_translates(folder, beam):
    write(folder, "test", lines(folder, "train.de")[:20], lines(folder, "train.en")[:20])
    task = load(folder, pre_norm=True, beam=beam)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    before = task.evaluate(model)
    for step in range(120):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, seed=0, batch_size=20)).backward()
        optimizer.step()
    scores = task.evaluate(model)
    assert before["bleu"] < 10
    assert scores["bleu"] > 60
    assert scores["loss"] < 0.5 * before["loss"]
    model.eval()
    with torch.no_grad():
        right = sum(map(str.__eq__, task.translations(model), lines(folder, "test.en")))
    assert right >= 10


def test_translations_come_in_the_files_order(folder, monkeypatch):
    def copy(_, source, **options):
        assert options == {"beam": 4}
        return [[token for token in row if token > 2] for row in source.tolist()]

    monkeypatch.setattr("nmstep.tasks.translation.task.translate", copy)
    monkeypatch.setattr("nmstep.tasks.translation.task._EVALUATED_AT_ONCE", 4)
    task = load(folder)
    assert task.translations(task.model()) == lines(folder, "test.de")
    assert load(folder, test_subset=3).translations(task.model()) == lines(folder, "test.de")[:3]


def test_evaluation_runs_in_half_precision_too(folder):
    task = load(folder, test_subset=2)
    model = task.model()
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(model, task.batch(0, seed=0, batch_size=4))
        scores = task.evaluate(model)
    assert loss.dtype == torch.float32
    assert math.isfinite(scores["loss"])


def test_the_signature_says_how_text_is_split(folder):
    assert "tok:13a" in load(folder).signature
    tokenized = load(folder, tokenized=True)
    assert "tok:none" in tokenized.signature
    assert tokenized.signature == load(folder, tokenized=True).signature


def test_moses_escapes_are_undone_or_warned_of(folder):
    write(folder, "test", ["Das ist &apos;s", "a"], ["it &apos;s R &amp; D", "b"])
    task = load(folder, tokenized=True)
    assert task._references == ["it 's R & D", "b"]
    assert decoded(task, task._test[0].select(torch.tensor([0]))) == ["Das ist 's"]
    with pytest.warns(
        UserWarning, match=r"1 of the 2 references of .*test.de.* hold &apos; .* give tokenized=true"
    ):
        load(folder)


def test_test_subset_takes_the_first_pairs(folder):
    assert load(folder, test_subset=2)._references == lines(folder, "test.en")[:2]
    for subset in (0, 7):
        with pytest.raises(ValueError, match=rf"test_subset={subset} is out of range: .* has 6 pairs"):
            load(folder, test_subset=subset)


@pytest.mark.parametrize("letter", ["ß", "🙂", "中", "<s>", "</s>"])
def test_any_text_is_encoded_without_loss(folder, letter):
    task = load(folder)
    text = f"{letter}x  {letter} y"
    (row,) = task._bpe.encode([text]).select(torch.tensor([0])).tolist()
    assert task._bpe.decode(row) == text
    assert row.count(2) == 1
    assert 1 not in row


def test_a_word_is_encoded_alike_wherever_it_stands(folder):
    bpe = load(folder)._bpe
    alone, last = bpe.encode(["Hund", "Mann Hund"]).select(torch.tensor([0, 1])).tolist()
    alone = [token for token in alone if token]
    assert last[-len(alone) :] == alone


def test_a_sentence_longer_than_any_other_is_scored(folder):
    write(folder, "test", ["Hund " * 200, "Mann"], ["man", "dog " * 200])
    task = load(folder, max_length=16)
    assert math.isfinite(task.evaluate(task.model())["loss"])


def test_all_linear_layers_become_sparse_and_the_embedding_does_not(folder):
    task = load(folder, layers=2)
    model = task.model()
    plan = nmstep.plan(model, "2:4", include=task.defaults.include)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(linear) == 2 * (2 + 2) + 2 * (2 + 3 + 2)
    assert {entry.name for entry in plan.sparse} == linear


def test_the_paper_defaults():
    options = nmstep.tasks.options("wmt17-de-en")
    expected = {
        "layers": 6,
        "width": 512,
        "heads": 8,
        "feed_forward": 2048,
        "dropout": 0.1,
        "vocabulary": 32_000,
    }
    assert expected.items() <= options.items()
    assert options["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam=0 is too small: give at least 1"),
        ({"max_length": 1}, "max_length=1 is too small: give at least 2"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is out of range"),
        ({"heads": 3}, "width=32 cannot be split over heads=3"),
        ({"vocabulary": 258}, "vocabulary=258 is too small: .* need 259"),
    ],
)
def test_bad_options_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **options)


def test_without_sacrebleu_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        ImportError, match=r"sacrebleu is needed for .* and is not installed: pip install 'nmstep\[tasks\]'"
    ):
        load(folder)


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(os.environ.get("NMSTEP_DATA", "/nowhere")) / "multi30k").is_dir(),
    reason="NMSTEP_DATA names no folder with the real multi30k in it",
)
def test_loss_falls_on_the_real_captions():
    folder = Path(os.environ["NMSTEP_DATA"]) / "multi30k"
    task = load(
        folder, vocabulary=4000, width=64, heads=4, feed_forward=128, pre_norm=True, test_subset=20, beam=1
    )
    assert task.test_name == "test_2016_flickr"
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, seed=0, batch_size=32)).backward()
        optimizer.step()
    assert task.evaluate(model)["loss"] < 5.7  # words by their frequency alone: about 5.5 to 6
