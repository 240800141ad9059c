import hashlib

import pytest
import torch

import nmstep.tasks
from nmstep.tasks.digits import held_out_digits, normalise_digits, read_digits


@pytest.fixture(scope="module")
def task():
    return nmstep.tasks.load("digits")


def test_the_shipped_data_are_ucis():
    images, labels = read_digits()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 16)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as UCI states
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]  # the first row of optdigits.tes
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    digest = hashlib.sha256(images.numpy().tobytes() + labels.byte().numpy().tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_split_is_stratified_and_covers_everything():
    _, labels = read_digits()
    held_out = held_out_digits(labels)
    assert (int(held_out.sum()), int((~held_out).sum())) == (596, 1201)
    assert labels[held_out].bincount().tolist() == [c // 3 for c in labels.bincount().tolist()]


def test_inputs_have_zero_mean_and_unit_deviation():
    inputs = normalise_digits(read_digits()[0])
    assert abs(inputs.mean()) < 1e-2
    assert abs(inputs.std() - 1) < 1e-2


def test_one_epoch_shows_each_training_example_once(task):
    images, labels = read_digits()
    kept = ~held_out_digits(labels)
    expected = normalise_digits(images[kept]).flatten(1)
    batches = [task.batch(step, seed=3, batch_size=1201) for step in range(2)]
    for batch in batches:
        assert sorted(map(tuple, batch.inputs.flatten(1).tolist())) == sorted(map(tuple, expected.tolist()))
        assert batch.targets.bincount().tolist() == labels[kept].bincount().tolist()
    assert not torch.equal(batches[0].inputs, batches[1].inputs)


def test_batch_is_pure(task):
    later = task.batch(40, seed=0, batch_size=64)
    task.batch(0, seed=9, batch_size=64)
    again = nmstep.tasks.load("digits").batch(40, seed=0, batch_size=64)
    assert torch.equal(later.inputs, again.inputs)
    assert torch.equal(later.targets, again.targets)


def test_model_follows_the_global_seed_and_fits_wide_patterns(task):
    torch.manual_seed(0)
    first = task.model()
    torch.manual_seed(0)
    for a, b in zip(first.parameters(), task.model().parameters(), strict=True):
        assert torch.equal(a, b)
    weights = [p for p in first.parameters() if p.dim() > 1]
    assert [w.shape[1] % 32 for w in weights] == [1, 0, 0, 0]
    assert sum(p.numel() for p in first.parameters()) == 30_890
    assert sum(w.numel() for w in weights) == 30_496


def test_evaluate_equals_a_hand_computation(task):
    torch.manual_seed(1)
    model = task.model().eval()
    images, labels = read_digits()
    held_out = held_out_digits(labels)
    with torch.no_grad():
        probabilities = model(normalise_digits(images[held_out])).double().softmax(1)
    right = probabilities.gather(1, labels[held_out, None])
    scores = task.evaluate(model.train())
    assert scores["loss"] == pytest.approx(-right.log().mean().item(), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(
        100 * (probabilities.argmax(1) == labels[held_out]).double().mean().item()
    )
    assert model.training
    assert set(scores) == {"loss", task.metric}
    assert task.higher_is_better


def test_a_short_dense_run_learns(task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.defaults.lr)
    for step in range(250):
        loss = task.loss(model, task.batch(step, seed=0, batch_size=64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.evaluate(model)["accuracy"] > 93
