import pytest
import torch
from torch import nn

import nmstep
from nmstep.deploy.speed import Rung, Speed, break_even, layer_kinds, layer_speed, model_speed
from nmstep.timing import Timing

FAST = {"rounds": 3, "seconds": 1e-3}


def sparse(model, pattern="2:4"):
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.mul_(nmstep.nm_mask(module.weight, pattern, dim=1))
    return model


@pytest.fixture
def model():
    return sparse(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 32)))


def timing(ratio):
    return Timing(ratio=ratio, low=ratio, high=ratio, ms=ratio, other_ms=1.0)


@pytest.mark.parametrize(
    ("fp32", "bf16", "fastest"), [(2, 3, "packed"), (0.5, 0.9, "dense"), (2, 0.9, "dense bf16")]
)
def test_the_fastest_takes_least_time(fp32, bf16, fastest):
    speed = Speed(fp32=timing(fp32), bf16=timing(bf16))
    assert speed.fastest == fastest
    assert speed.times == {"dense": fp32, "dense bf16": bf16, "packed": 1}
    assert speed.ms == {"dense": fp32, "dense bf16": bf16, "packed": 1}


def test_all_three_models_are_used_each_in_its_own_type(model):
    seen = []

    def run(used):
        dtype = next(used.parameters()).dtype
        seen.append((type(used[0]).__name__, dtype))
        used(torch.ones(2, 16, dtype=dtype))

    packed = nmstep.pack(model)
    speed = model_speed(model, packed, run, **FAST)
    assert min(speed.ms.values()) > 0
    expected = {("Linear", torch.float32), ("Linear", torch.bfloat16), ("PackedLinear", torch.float32)}
    assert set(seen) == expected
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_layers_of_one_kind_are_measured_once_on_their_last_input(model):
    packed = nmstep.pack(model)

    def run(used):
        used(torch.ones(7, 16))
        used(torch.full((1, 16), 2.0))

    kinds = layer_kinds(packed, run)
    assert [kind.names for kind in kinds] == [("0", "2"), ("1",)]
    assert kinds[0].x.tolist() == [[2.0] * 16]
    speeds = [layer_speed(kind, **FAST) for kind in kinds]
    assert [(s.names, s.shape, str(s.pattern), s.inputs) for s in speeds] == [
        (("0", "2"), (32, 16), "2:4", (1, 16)),
        (("1",), (16, 32), "2:4", (1, 32)),
    ]
    assert not packed[0]._forward_pre_hooks


def test_convolutions_of_another_stride_are_another_kind():
    convs = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3)]
    packed = nmstep.pack(sparse(nn.ModuleList(convs)))
    kinds = layer_kinds(packed, lambda model: [layer(torch.ones(1, 4, 8, 8)) for layer in model])
    assert [kind.names for kind in kinds] == [("0",), ("1",), ("2",)]


def test_a_linear_layer_is_tried_at_each_number_of_rows_once(model):
    (kind, _) = layer_kinds(nmstep.pack(model), lambda used: used(torch.ones(2, 3, 16)))
    seen = []
    kind.layer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    rungs = break_even(kind, (64, 1, 1), **FAST)
    assert [rung.rows for rung in rungs] == [1, 64]
    assert set(seen) == {(1, 16), (64, 16)}
    assert all(isinstance(rung, Rung) and rung.fp32.ratio > 0 and rung.bf16.ratio > 0 for rung in rungs)


def test_a_convolution_takes_whole_examples():
    # 8 × 8 places at a stride of 2 are 16 windows: as many examples as have about so many, and one at least.
    conv = nmstep.pack(sparse(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, stride=2))))
    (kind,) = layer_kinds(conv, lambda used: used(torch.ones(3, 4, 8, 8)))
    seen = []
    kind.layer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    rungs = break_even(kind, (1, 16, 40), **FAST)
    assert [rung.rows for rung in rungs] == [16, 32]
    assert set(seen) == {(1, 4, 8, 8), (2, 4, 8, 8)}


def test_a_layer_is_measured_against_its_own_dense_one(model):
    (kind, _) = layer_kinds(nmstep.pack(model), lambda used: used(torch.ones(2, 16)))
    speed = layer_speed(kind, **FAST)
    assert min(speed.ms.values()) > 0
