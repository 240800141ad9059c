import pytest
import torch

from nmstep.tasks.glue import scores as official

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

# 3 right positives, 1 wrong positive, 1 missed, 3 right negatives.
PREDICTED = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0])
TRUE = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0])


def test_f1_and_accuracy():
    """6 of 8 right; F1 = 2 * 3 / (2 * 3 + 1 + 1)."""
    assert official.accuracy_and_f1(PREDICTED, TRUE) == pytest.approx({"accuracy": 75.0, "f1": 75.0})
    # 1 right positive, 3 wrong ones, none missed: 2 / (2 + 3), and 4 of 7 right.
    scores = official.accuracy_and_f1(
        torch.tensor([1, 1, 1, 1, 0, 0, 0]), torch.tensor([1, 0, 0, 0, 0, 0, 0])
    )
    assert scores == pytest.approx({"accuracy": 400 / 7, "f1": 40.0})


def test_f1_is_of_class_1():
    flipped = official.accuracy_and_f1(
        torch.tensor([0, 0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 1, 1, 1])
    )
    # 3 right positives, 3 missed.
    assert flipped["f1"] == pytest.approx(100 * 6 / 9)


def test_matthews():
    """(3 * 3 - 1 * 1) / sqrt(4 * 4 * 4 * 4) = 1/2."""
    assert official.matthews(PREDICTED, TRUE) == pytest.approx({"matthews": 50.0, "accuracy": 75.0})
    assert official.matthews(1 - TRUE, TRUE)["matthews"] == pytest.approx(-100.0)


def test_correlations():
    """x - mean = (-1, 0, 0, 1), y - mean = (-1, -1, 1, 1): 2 / sqrt(2 * 4); the ranks are as far apart."""
    x, y = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 2.0, 2.0])
    expected = 100 / 2**0.5
    assert official.correlations(x, y) == pytest.approx({"pearson": expected, "spearman": expected})


def test_spearman_sees_ranks_and_pearson_values():
    scores = official.correlations(torch.tensor([0.0, 1.0, 10.0]), torch.tensor([0.0, 1.0, 2.0]))
    # deviations (-11, -8, 19) / 3 and (-1, 0, 1): 10 / sqrt(182/3 * 2)
    assert scores == pytest.approx({"pearson": 100 * 10 / (182 / 3 * 2) ** 0.5, "spearman": 100.0})


@pytest.mark.parametrize("constant", [0, 1])
def test_constant_classes_give_no_warning_and_no_nan(constant):
    predictions = torch.full((8,), constant)
    assert official.matthews(predictions, TRUE)["matthews"] == 0.0
    assert official.accuracy_and_f1(predictions, TRUE) == pytest.approx(
        {"accuracy": 50.0, "f1": 100 * 2 / 3 if constant else 0.0}
    )
    nothing = torch.zeros(8, dtype=torch.int64)
    assert official.accuracy_and_f1(nothing, nothing) == {"accuracy": 100.0, "f1": 0.0}
    assert official.matthews(nothing, nothing)["matthews"] == 0.0


@pytest.mark.parametrize("bad", [[2.0, 2.0, 2.0], [1.0, float("nan"), 2.0], [1.0, float("inf"), 2.0]])
def test_values_without_correlation_score_0(bad):
    true = torch.tensor([0.0, 1.0, 5.0])
    assert official.correlations(torch.tensor(bad), true) == {"pearson": 0.0, "spearman": 0.0}


def test_constant_labels_and_a_single_example_score_0():
    nothing = {"pearson": 0.0, "spearman": 0.0}
    assert official.correlations(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])) == nothing
    assert official.correlations(torch.tensor([1.0]), torch.tensor([3.0])) == nothing


def test_nearly_constant_predictions_are_still_correlated():
    base = torch.tensor(4.0)
    above = torch.nextafter(base, torch.tensor(5.0))
    scores = official.correlations(torch.stack([base, base, above]), torch.tensor([0.0, 0.0, 5.0]))
    assert scores == pytest.approx({"pearson": 100.0, "spearman": 100.0})
