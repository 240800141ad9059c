from collections import Counter

import pytest
import torch

from glue_tiny import SPECIAL, WORDS, write_tokenizer
from nmstep.tasks.glue.sources import GlueExamples
from nmstep.tasks.glue.tokens import TokenSet, tokenise
from nmstep.tasks.order import BucketOrder, EpochOrder

transformers = pytest.importorskip("transformers")


def code(*words):
    """Returns tokens by the vocabulary's order, independently of the tokenizer."""
    return [(SPECIAL + WORDS).index(word) for word in words]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def pairs(*texts, labels=None):
    return GlueExamples(
        first=[a for a, _ in texts],
        second=[b for _, b in texts],
        labels=torch.arange(len(texts)) if labels is None else labels,
    )


def test_a_batch_is_padded_masked_and_typed(tokenizer):
    tokens = tokenise(pairs(("the cat", "sat"), ("dog", "a big zebra ran")), tokenizer, max_length=20)
    batch = tokens.batch(torch.tensor([1, 0]))
    second = code("[CLS]", "dog", "[SEP]", "a", "big", "[UNK]", "ran", "[SEP]")
    first = code("[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]", "[PAD]", "[PAD]")
    assert batch.inputs.tolist() == [second, first]
    assert batch.extras["attention_mask"].tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    assert batch.extras["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]]
    assert batch.targets.tolist() == [1, 0]
    assert {value.dtype for value in (batch.inputs, *batch.extras.values())} == {torch.int64}


def test_the_width_is_a_multiple_of_8_below_max_length(tokenizer):
    texts = [(" ".join(["the"] * count), "cat") for count in (1, 6, 30)]
    tokens = tokenise(pairs(*texts), tokenizer, max_length=20)
    # [CLS] ... [SEP] cat [SEP] adds 4; the longer sentence of a pair is cut.
    assert tokens.lengths.tolist() == [5, 10, 20]
    widths = [tokens.batch(torch.tensor([index])).inputs.shape[1] for index in range(3)]
    assert widths == [8, 16, 20]
    assert tokens.batch(torch.tensor([2])).inputs[0, -3:].tolist() == code("[SEP]", "cat", "[SEP]")


def test_padding_is_the_tokenizer_s(tmp_path):
    write_tokenizer(tmp_path, typed=False)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    other.pad_token = "[MASK]"
    tokens = tokenise(pairs(("the cat", "sat")), other, max_length=20)
    batch = tokens.batch(torch.tensor([0]))
    assert batch.inputs[0, 6:].tolist() == code("[MASK]", "[MASK]")
    assert set(batch.extras) == {"attention_mask"}


def test_single_sentences_and_more_than_one_piece(tokenizer, monkeypatch):
    monkeypatch.setattr("nmstep.tasks.glue.tokens._TEXTS_AT_ONCE", 2)
    examples = GlueExamples(first=["the", "cat sat", "a", "on a mat"], second=None, labels=torch.zeros(4))
    tokens = tokenise(examples, tokenizer, max_length=20)
    assert (len(tokens), tokens.starts.tolist()) == (4, [0, 3, 7, 10])
    assert tokens.batch(torch.tensor([3])).inputs[0].tolist() == code(
        "[CLS]", "on", "a", "mat", "[SEP]", "[PAD]", "[PAD]", "[PAD]"
    )
    assert (tokens.ids.dtype, tokens.types.dtype) == (torch.int32, torch.uint8)


def order_of(size, seed=0):
    return BucketOrder(torch.randint(5, 60, (size,), generator=torch.Generator().manual_seed(seed)))


def test_a_stretch_holds_the_same_examples_as_without_buckets():
    order, plain = order_of(640), EpochOrder(640)
    for stretch in range(3):  # 640 // 16 = 40 batches
        steps = range(40 * stretch, 40 * (stretch + 1))
        seen = Counter(i for k in steps for i in order.indices(k, seed=3, batch_size=16).tolist())
        expected = Counter(i for k in steps for i in plain.indices(k, seed=3, batch_size=16).tolist())
        assert seen == expected


def test_stretches_are_at_most_50_batches_and_at_least_one():
    order, plain = order_of(2000), EpochOrder(2000)
    first = {i for k in range(50) for i in order.indices(k, seed=0, batch_size=4).tolist()}
    assert first == set(plain.indices(0, seed=0, batch_size=200).tolist())
    few = order_of(3).indices(5, seed=0, batch_size=7)
    assert few.shape == (7,)
    assert set(few.tolist()) == {0, 1, 2}


def test_batches_are_of_like_length_and_in_random_order():
    order = order_of(1600)
    spans, means = [], []
    for step in range(50):
        lengths = order._lengths[order.indices(step, seed=1, batch_size=32)].float()
        spans.append(float(lengths.max() - lengths.min()))
        means.append(float(lengths.mean()))
    assert max(spans) <= 3
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_steps_are_pure_and_seeds_differ():
    order = order_of(300)
    later = order.indices(77, seed=2, batch_size=8)
    order.indices(0, seed=5, batch_size=8)
    assert torch.equal(order_of(300).indices(77, seed=2, batch_size=8), later)
    assert not torch.equal(order.indices(77, seed=3, batch_size=8), later)


@pytest.mark.parametrize(("step", "batch_size"), [(-3, 4), (0, 0)])
def test_impossible_batches_are_refused_as_they_were_asked_for(step, batch_size):
    with pytest.raises(ValueError, match=f"no batch at step={step} with batch_size={batch_size}"):
        order_of(100).indices(step, seed=0, batch_size=batch_size)


def test_a_set_has_as_many_examples_as_lengths():
    empty = torch.zeros(0, dtype=torch.int64)
    assert (
        len(TokenSet(ids=empty, types=None, starts=empty, lengths=empty, labels=empty, padding=0, most=8))
        == 0
    )
