import json

import pytest
import torch
from torch import nn

import nmstep
from nmstep.bench import Footprint, Measured, MeasuredLayer, Subject, Use, measure
from nmstep.deploy import PackedLinear
from nmstep.deploy.speed import LayerSpeed, Rung, Speed
from nmstep.patterns import NMPattern
from nmstep.timing import Timing


def timing(ratio, packed_ms=1.0, spread=1.0):
    return Timing(ratio=ratio, low=ratio, high=ratio * spread, ms=ratio * packed_ms, other_ms=packed_ms)


def layer(ratios, dense_from=None):
    """A layer whose ratios against fp32 and bf16 are given by rows."""
    return MeasuredLayer(
        speed=LayerSpeed(
            fp32=timing(2),
            bf16=timing(0.5),
            names=("a", "b"),
            shape=(8, 4),
            pattern=NMPattern(2, 4),
            inputs=(1, 4),
        ),
        rungs=[
            Rung(rows=rows, fp32=timing(fp32), bf16=timing(bf16)) for rows, (fp32, bf16) in ratios.items()
        ],
        dense_from=dense_from,
    )


def measured(**changes):
    usual = {
        "speeds": {2: Speed(fp32=timing(2, 10.0), bf16=timing(0.5, 10.0))},
        "layers": [layer({1: (3, 2), 4: (1.5, 1), 16: (0.9, 0.5)})],
        "footprints": {"dense": Footprint(file=100, loaded=None, used=None)},
        "decoded": None,
    }
    return Measured(**(usual | changes))


def test_packed_wins_where_the_other_takes_longer():
    (found,) = measured().layers
    assert found.wins("dense") == [1, 4]
    assert found.wins("dense bf16") == [1]


def test_tokens_per_second_count_all_examples():
    assert measured().tokens_per_second(2) is None
    found = measured(decoded=5).tokens_per_second(2)
    assert found == pytest.approx({"dense": 500, "dense bf16": 2000, "packed": 1000})


def test_unrest_is_the_widest_spread():
    assert measured().unrest() == 1
    speeds = {1: Speed(fp32=timing(1), bf16=timing(2, spread=1.75))}
    assert measured(speeds=speeds).unrest() == 1.75


def test_unrest_of_one_layer_among_several_does_not_count():
    def rungs(*spreads):
        found = [Rung(rows=1, fp32=timing(1, spread=spread), bf16=timing(1)) for spread in spreads]
        return [MeasuredLayer(speed=layer({}).speed, rungs=found, dense_from=None)]

    assert measured(layers=rungs(1, 1, 9)).unrest() == 1
    assert measured(layers=rungs(1, 4, 9)).unrest() == 4


def test_the_record_is_json_and_holds_all():
    record = json.loads(json.dumps(measured(decoded=5).record()))
    assert record["model"][0]["fastest"] == "dense bf16"
    assert record["model"][0]["tokens_per_second"]["packed"] == 1000
    assert record["footprints"] == {"dense": {"file": 100, "loaded": None, "used": None}}
    (found,) = record["layers"]
    assert (found["names"], found["pattern"], found["dense_from"]) == (["a", "b"], "2:4", None)
    assert found["packed_wins"] == {"dense": [1, 4], "dense bf16": [1]}
    assert [(rung["rows"], rung["fp32"]["ratio"]) for rung in found["rungs"]] == [(1, 3), (4, 1.5), (16, 0.9)]


def test_everything_is_measured_and_told(monkeypatch):
    dense = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)).requires_grad_(False)
    for module in dense:
        module.weight.mul_(nmstep.nm_mask(module.weight, "2:4"))
    subject = Subject(
        name="it",
        dense=dense,
        packed=nmstep.pack(dense),
        use=lambda count: Use(positional=(torch.ones(count, 16),)),
        what="a row",
    )
    monkeypatch.setattr(
        PackedLinear, "dense_from", property(lambda self: 7 if self.in_features == 32 else None)
    )
    told = []
    found = measure(
        subject,
        batches=(3, 1),
        rounds=3,
        seconds=1e-3,
        memory=False,
        tell=lambda text, total: told.append((text, total)),
    )
    assert {total for _, total in told} == {len(told)} == {3 + 2 + 2 * 2}
    assert told[3][0] == "the model, 3 examples"
    assert list(found.speeds) == [3, 1]
    assert [(layer.speed.inputs, layer.dense_from) for layer in found.layers] == [
        ((3, 16), None),
        ((3, 32), 7),
    ]
    assert list(found.footprints) == ["dense", "dense bf16", "packed"]
