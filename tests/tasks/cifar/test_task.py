import os
import pickle
import socket

import numpy as np
import pytest
import torch

import nmstep.tasks

CIFAR10_MEAN = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
CIFAR10_STD = np.array([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(tiny, name="cifar10", **options):
    return nmstep.tasks.load(name, data=str(tiny.folder), **options)


def normalised(images):
    return torch.from_numpy(((images / 255.0 - CIFAR10_MEAN) / CIFAR10_STD).astype(np.float32))


def test_an_epoch_holds_every_image_once_with_its_label(tiny_cifar10):
    task = load(tiny_cifar10, augment=False)
    batch = task.batch(0, seed=0, batch_size=100)
    expected = normalised(tiny_cifar10.train_images)
    order = [
        int((expected == image).flatten(1).all(1).nonzero()) for image in rounded(batch.inputs, expected)
    ]
    assert sorted(order) == list(range(100))
    assert batch.targets.tolist() == tiny_cifar10.train_labels[order].tolist()


def rounded(images, expected):
    """Returns each image's nearest in `expected`, once sure that it is within rounding of it."""
    nearest = torch.cdist(images.flatten(1), expected.flatten(1)).argmin(1)
    torch.testing.assert_close(images, expected[nearest])
    return expected[nearest]


def test_batch_is_pure_and_augmented(tiny_cifar10):
    task = load(tiny_cifar10)
    later = task.batch(9, seed=4, batch_size=16)
    task.batch(0, seed=4, batch_size=16)
    again = load(tiny_cifar10).batch(9, seed=4, batch_size=16)
    assert torch.equal(later.inputs, again.inputs)
    assert torch.equal(later.targets, again.targets)
    plain = load(tiny_cifar10, augment=False).batch(9, seed=4, batch_size=16)
    assert torch.equal(plain.targets, later.targets)
    assert not torch.equal(plain.inputs, later.inputs)


class FirstPixels(torch.nn.Module):
    """Gives class k the k-th value of the image's first row as logit."""

    def forward(self, images):
        return images[:, 0, 0, :10]


def test_evaluate_equals_a_hand_computation(tiny_cifar10):
    scores = load(tiny_cifar10).evaluate(FirstPixels())
    logits = normalised(tiny_cifar10.test_images)[:, 0, 0, :10].double().numpy()
    labels = tiny_cifar10.test_labels
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(20), labels]
    assert scores["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).mean())


def test_the_folder_itself_or_its_parent_will_do(tiny_cifar100):
    parent = load(tiny_cifar100, "cifar100", augment=False).batch(0, seed=0, batch_size=8)
    tiny_cifar100.folder = tiny_cifar100.folder / "cifar-100-python"
    inside = load(tiny_cifar100, "cifar100", augment=False).batch(0, seed=0, batch_size=8)
    assert torch.equal(parent.inputs, inside.inputs)
    assert parent.targets.max() > 9


def test_subsets_are_balanced(tiny_cifar10):
    task = load(tiny_cifar10, train_subset=30, test_subset=10, augment=False)
    assert task.batch(0, seed=0, batch_size=30).targets.bincount().tolist() == [3] * 10
    accuracy = task.evaluate(FirstPixels())["accuracy"]
    assert accuracy == pytest.approx(round(accuracy / 10) * 10)
    with pytest.raises(ValueError, match="test_subset=21: a subset of 21 cannot be taken of 20 examples"):
        load(tiny_cifar10, test_subset=21)


def test_model_names(tiny_cifar10, tiny_cifar100):
    assert load(tiny_cifar100, "cifar100").model().fc.out_features == 100
    with torch.device("meta"):
        assert load(tiny_cifar10, model="densenet121").model().fc.out_features == 10
    with pytest.raises(ValueError, match="unknown model 'vgg': choose 'resnet20', 'resnet18', 'densenet121'"):
        load(tiny_cifar10, model="vgg")


def test_no_data_says_what_to_give():
    with pytest.raises(ValueError, match=r"give data=, .*'cifar-10-batches-py'.*hub name 'uoft-cs/cifar10'"):
        nmstep.tasks.load("cifar10")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no folder '.*gone' for CIFAR-100 .*'cifar-100-python'.*uoft-cs"
    ):
        nmstep.tasks.load("cifar100", data=str(tmp_path / "gone"))


def test_a_folder_with_something_else_says_what_was_found(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    (tmp_path / "train").mkdir()
    with pytest.raises(
        ValueError, match=r"no CIFAR-10 in .*looked for data_batch_1, .*found holiday.jpg, train/; give"
    ):
        nmstep.tasks.load("cifar10", data=str(tmp_path))


def test_an_archive_still_packed_is_pointed_out(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"")
    with pytest.raises(ValueError, match=r"unpack cifar-10-python\.tar\.gz there"):
        nmstep.tasks.load("cifar10", data=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"is a file: unpack it and give the folder that holds 'cifar-10-batches-py'"
    ):
        nmstep.tasks.load("cifar10", data=str(archive))


def test_an_incomplete_folder_says_what_is_missing(tiny_cifar10):
    (tiny_cifar10.folder / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py' is incomplete: data_batch_3 missing of"):
        load(tiny_cifar10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {b"data": [1, 2]},
            r"'.*test_batch' is not a CIFAR-10 file: expected .* found the keys \['data', 'lab",
        ),
        (
            {b"data": np.zeros((20, 3072))},
            r"images in '.*test_batch' cannot be read: expected a C-ordered uint8",
        ),
        (
            {b"data": np.zeros((20, 100), np.uint8)},
            r"have shape \(20, 100\), expected \(20, 3072\) for its 20 labels",
        ),
        ({b"labels": [10] * 20}, "a label in '.*test_batch' is not a whole number from 0 to 9"),
        ({b"labels": [0.5] * 20}, "a label in '.*test_batch' is not a whole number from 0 to 9"),
    ],
)
def test_a_malformed_file_is_named(tiny_cifar10, change, message):
    record = {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 20}
    path = tiny_cifar10.folder / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(record | change, protocol=2))
    with pytest.raises(ValueError, match=message):
        load(tiny_cifar10)


@pytest.mark.skipif(
    "NMSTEP_DATA" not in os.environ, reason="NMSTEP_DATA names no folder with the real CIFAR-10"
)
def test_resnet20_learns_on_the_real_images():
    task = nmstep.tasks.load("cifar10", data=os.environ["NMSTEP_DATA"], train_subset=1000, test_subset=100)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(20):
        loss = task.loss(model, task.batch(step, seed=0, batch_size=32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
