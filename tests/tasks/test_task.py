import pytest
import torch
from torch import nn

import nmstep.tasks
from nmstep.tasks.classification import classification_scores
from nmstep.tasks.task import Batch, TaskDefaults, device_of, evaluation_mode


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch_size", 0), ("lr", 0.0), ("lr", float("nan")), ("weight_decay", -1.0)],
)
def test_defaults_are_validated(field, value):
    good = {"steps": 1, "batch_size": 1, "lr": 1e-3, "weight_decay": 0.0}
    with pytest.raises(ValueError, match=f"{field}=.* is too small"):
        TaskDefaults(**(good | {field: value}))


def test_evaluation_mode_restores_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())

    def evaluate():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        evaluate()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_scores_equal_a_hand_computation():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    by_hand = torch.tensor([2.0, 0.0, 0.0]).neg() + logits.exp().sum(1).log()
    for chunk in (1, 2, 3):
        scores = classification_scores(nn.Identity(), logits, labels, chunk=chunk)
        assert scores["loss"] == pytest.approx(by_hand.mean().item(), rel=1e-6)
        assert scores["accuracy"] == pytest.approx(100 / 3)


def test_batches_move_and_devices_are_found():
    batch = Batch(inputs=torch.zeros(2, 3), targets=torch.zeros(2, dtype=torch.int64))
    assert batch.to("meta").inputs.is_meta
    assert batch.to("cpu").targets is batch.targets
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


def test_unknown_task_names_the_nearest_or_all():
    with pytest.raises(ValueError, match=r"no task 'digit': did you mean 'digits'\?"):
        nmstep.tasks.load("digit")
    with pytest.raises(ValueError, match=r"no task 'zzz': choose from digits, text, cifar"):
        nmstep.tasks.options("zzz")


def test_unknown_option_names_the_nearest_or_all():
    with pytest.raises(ValueError, match=r"task 'text' has no option 'widht': did you mean 'width'\?"):
        nmstep.tasks.load("text", widht=64)
    with pytest.raises(ValueError, match=r"task 'digits' has no option 'width': there are none"):
        nmstep.tasks.load("digits", width=64)


def test_data_given_to_a_task_without_is_refused():
    with pytest.raises(
        ValueError, match="'digits' brings its own data and takes no data='/x': leave data out"
    ):
        nmstep.tasks.load("digits", data="/x")


def test_every_name_has_options():
    names = nmstep.tasks.available()
    assert [sorted(nmstep.tasks.options(name)) for name in names][:4] == [
        [],
        ["context", "heads", "layers", "projection", "tied", "width"],
        ["augment", "model", "test_subset", "train_subset"],
        ["augment", "model", "test_subset", "train_subset"],
    ]
