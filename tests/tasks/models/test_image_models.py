import pytest
import torch

from nmstep.tasks.models import ResNet18, ResNet20, densenet121
from nmstep.tasks.models.resnet import PadShortcut


@pytest.mark.parametrize(
    ("build", "parameters"), [(ResNet20, 269_722), (ResNet18, 11_173_962), (densenet121, 6_956_298)]
)
def test_known_parameter_counts(build, parameters):
    with torch.device("meta"):
        model = build(10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("build", [ResNet20, ResNet18, densenet121])
def test_logits_have_the_classes_asked_for(build):
    model = build(100).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 100)


def test_option_a_shortcut_subsamples_and_pads_both_sides():
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    y = PadShortcut(2, 6, 2)(x)
    assert y.shape == (1, 6, 2, 2)
    assert not y[:, [0, 1, 4, 5]].any()
    assert y[0, 2].tolist() == [[0, 2], [8, 10]]
    assert y[0, 3].tolist() == [[16, 18], [24, 26]]
