import hashlib
import math

import pytest
import torch
from torch import nn

import nmstep.tasks
from nmstep.tasks.text_files import read_text

SMALL = {"layers": 1, "width": 16, "heads": 2, "context": 8}


class NextLetter(nn.Module):
    """Gives the byte that follows by one in value the logit 1, all others 0."""

    def forward(self, tokens):
        return nn.functional.one_hot((tokens + 1) % 256, 256).float()


class SeesHowMuch(nn.Module):
    """Records the windows that it was shown."""

    def __init__(self):
        super().__init__()
        self.windows = []

    def forward(self, tokens):
        self.windows += tokens.tolist()
        return torch.zeros(*tokens.shape, 256)


@pytest.fixture
def alphabet(tmp_path):
    path = tmp_path / "alphabet.txt"
    path.write_bytes(bytes(range(256)) * 2)  # trains on 460 bytes, validates on 52
    return path


def load(path, **options):
    return nmstep.tasks.load("text", data=str(path), **(SMALL | options))


def test_the_shipped_text_is_tiny_shakespeare():
    train, validation = read_text(None)
    assert len(train) == 1_003_854
    assert len(validation) == 111_540
    digest = hashlib.sha256(train + validation).hexdigest()
    assert digest == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def test_targets_follow_inputs_and_windows_do_not_overlap(alphabet):
    task = load(alphabet)
    windows = (460 - 8) // 8
    batch = task.batch(0, seed=0, batch_size=windows)  # exactly one epoch
    assert torch.equal(batch.targets, (batch.inputs + 1) % 256)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    # The bytes repeat after 256, so count them: an epoch is one run of windows * 8 bytes, each seen once.
    train = (bytes(range(256)) * 2)[:460]
    seen = sorted(batch.inputs.flatten().tolist())
    assert seen in [sorted(train[shift : shift + windows * 8]) for shift in range(8)]


def test_epochs_start_at_different_places(alphabet):
    task = load(alphabet)
    windows = (460 - 8) // 8
    starts = {task.batch(epoch, seed=0, batch_size=windows).inputs[0, 0].item() % 8 for epoch in range(8)}
    assert len(starts) > 2


def test_batch_is_pure(alphabet):
    task = load(alphabet)
    later = task.batch(30, seed=2, batch_size=5)
    task.batch(0, seed=2, batch_size=5)
    assert torch.equal(task.batch(30, seed=2, batch_size=5).inputs, later.inputs)
    assert torch.equal(load(alphabet).batch(30, seed=2, batch_size=5).inputs, later.inputs)
    assert not torch.equal(task.batch(30, seed=3, batch_size=5).inputs, later.inputs)


def test_perplexity_equals_a_hand_computation(alphabet):
    scores = load(alphabet).evaluate(NextLetter())
    one_right = math.log(math.e + 255) - 1  # cross-entropy with logit 1 on the right byte and 255 zeros
    assert scores["loss"] == pytest.approx(one_right, rel=1e-5)
    assert scores["perplexity"] == pytest.approx((math.e + 255) / math.e, rel=1e-5)


def test_every_validation_byte_but_the_first_is_scored_once(alphabet):
    model = SeesHowMuch()
    scores = load(alphabet).evaluate(model)
    validation = list((bytes(range(256)) * 2)[460:])
    assert [byte for window in model.windows for byte in window] == validation[:-1]
    assert [len(window) for window in model.windows] == [8] * 6 + [3]
    assert scores["perplexity"] == pytest.approx(256, rel=1e-5)


def test_a_diverged_model_has_infinite_perplexity(alphabet):
    class Wrong(nn.Module):
        def forward(self, tokens):
            return nn.functional.one_hot(tokens, 256).float() * 1e4

    assert load(alphabet).evaluate(Wrong())["perplexity"] == math.inf


def test_training_lowers_the_loss(alphabet):
    torch.manual_seed(0)
    task = load(alphabet)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = task.evaluate(model)["loss"]
    for step in range(60):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, seed=0, batch_size=8)).backward()
        optimizer.step()
    assert task.evaluate(model)["loss"] < 0.8 * before
    assert not task.higher_is_better


def test_folder_of_texts_takes_some_of_each_to_validate(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"B" * 20)
    (tmp_path / "a.txt").write_bytes(b"A" * 30)
    assert read_text(str(tmp_path)) == (b"A" * 27 + b"B" * 18, b"AAABB")


@pytest.mark.parametrize("ending", ["tokens", "raw"])
def test_wikitext_folder_keeps_its_own_split(tmp_path, ending):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.{ending}").write_text(split)
    (tmp_path / "notes.txt").write_text("not this")
    assert read_text(str(tmp_path)) == (b"train", b"valid")


def test_wikitext_folder_without_a_split_says_which(tmp_path):
    (tmp_path / "wiki.valid.tokens").write_text("x")
    with pytest.raises(
        ValueError, match=r"has wiki.valid.tokens but no wiki.train.tokens: .*give one of its files"
    ):
        read_text(str(tmp_path))


def test_missing_and_empty_places_say_what_to_give(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no text at .*nowhere.*give a text file or a folder with wiki"
    ):
        read_text(str(tmp_path / "nowhere"))
    (tmp_path / "book.pdf").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no text in the folder .*looked for .*\*\.txt.* found book.pdf; give"
    ):
        read_text(str(tmp_path))


def test_a_text_shorter_than_a_window_is_refused(tmp_path):
    (tmp_path / "short.txt").write_bytes(b"x" * 15)
    with pytest.raises(ValueError, match=r"too short: 13 bytes to train on and 2 to validate, but context=8"):
        load(tmp_path / "short.txt")


def test_a_bad_size_is_refused_on_loading(alphabet):
    with pytest.raises(ValueError, match="width=16 cannot be split over heads=3"):
        load(alphabet, heads=3)
