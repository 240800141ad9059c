"""Verification of ONNX files: the plan that they carry, or what their graph reads as a layer's weight."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import nmstep
from nmstep.verify import verify

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT

GOOD = torch.tensor(
    [[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0], [0.0, 0.0, 5.0, 0.0]]
)  # 2:4 along dimension 1
BAD = torch.tensor([[1.0, 1.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0], [0.0, 0.0, 5.0, 0.0]])
CROOKED = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # 1:2 along neither dimension


def tensor(name: str, value: torch.Tensor) -> onnx.TensorProto:
    if value.dtype == torch.bfloat16:
        raw = value.view(torch.int16).numpy().tobytes()
        return helper.make_tensor(name, onnx.TensorProto.BFLOAT16, value.shape, raw, raw=True)
    return onnx.numpy_helper.from_array(value.contiguous().numpy(), name)


def write(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, torch.Tensor], entry: object = None
) -> Path:
    ends = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [tensor(name, value) for name, value in weights.items()]
    )
    model = helper.make_model(graph)
    if entry is not None:
        helper.set_model_props(model, {"nm_sparsity": json.dumps(entry)})
    onnx.save(model, path)
    return path


LAYERS = {
    "gemm": (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), False, 1),
    "gemm not turned": (helper.make_node("Gemm", ["x", "w"], ["y"]), True, 0),
    "gemm from the left": (helper.make_node("Gemm", ["w", "x"], ["y"]), False, 1),
    "gemm from the left, turned": (helper.make_node("Gemm", ["w", "x"], ["y"], transA=1), True, 0),
    "matmul": (helper.make_node("MatMul", ["x", "w"], ["y"]), True, 0),
    "matmul from the left": (helper.make_node("MatMul", ["w", "x"], ["y"]), False, 1),
}


@pytest.mark.parametrize(("node", "turned", "dim"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_graph_says_along_which_dimension(
    tmp_path: Path, node: onnx.NodeProto, turned: bool, dim: int, dtype: torch.dtype
) -> None:
    for weight, ok in ((GOOD, True), (BAD, False)):
        value = (weight.T if turned else weight).to(dtype).contiguous()
        report = verify(write(tmp_path / "m.onnx", [node], {"w": value}), "2:4")
        assert (report.ok, report.tensors[0].dim) == (ok, dim)
    assert report.tensors[0].first is not None
    assert report.tensors[0].first.values == (1.0, 1.0, 2.0, 0.0)


def test_a_turned_weight_is_looked_at_as_it_is_stored(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    report = verify(write(tmp_path / "m.onnx", nodes, {"w": GOOD}), "2:4")
    assert (report.ok, report.tensors[0].dim) == (True, 1)
    assert not verify(write(tmp_path / "m.onnx", nodes, {"w": BAD}), "2:4").ok


@pytest.mark.parametrize(("kind", "dim"), [("Conv", 1), ("ConvTranspose", 0)])
def test_convolutions(tmp_path: Path, kind: str, dim: int) -> None:
    weight = torch.zeros(4, 4, 3)
    weight.select(dim, 0).fill_(1.0)
    path = write(tmp_path / "m.onnx", [helper.make_node(kind, ["x", "w"], ["y"])], {"w": weight})
    report = verify(path, "1:4")
    assert (report.ok, report.tensors[0].dim) == (True, dim)
    weight.select(dim, 1).fill_(1.0)
    assert not verify(write(path, [helper.make_node(kind, ["x", "w"], ["y"])], {"w": weight}), "1:4").ok


def test_what_is_no_weight_of_a_layer_may_be_dense(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "table"], ["l"], transB=1),
        helper.make_node("Add", ["l", "b"], ["y"]),
    ]
    weights = {"table": CROOKED, "w": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "b": torch.ones(4)}
    path = write(tmp_path / "m.onnx", nodes, weights)
    found = {t.name: (t.status, t.reason) for t in verify(path, "1:2").tensors}
    assert found == {
        "table": ("dense", "read by Gather and Gemm, not as a layer's weight"),
        "w": ("ok", "weight of MatMul"),
        "b": ("dense", "read by Add, not as a layer's weight"),
    }
    with pytest.raises(ValueError, match="does not say which pattern"):
        verify(path)
    with pytest.raises(ValueError, match="nothing to verify"):
        verify(path, "1:2", exclude=["w"])
    assert [t.name for t in verify(path, "1:2", include=["w"]).checked] == ["w"]
    assert not verify(path, "1:4").ok  # 4 does not divide 2


def test_a_file_says_itself_what_is_sparse(tmp_path: Path) -> None:
    plan = nmstep.SparsityPlan(
        (nmstep.PlanEntry(name="w", shape=(3, 4), kind="Linear", pattern=nmstep.NMPattern(2, 4), dim=1),)
    )
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    assert verify(write(tmp_path / "m.onnx", [node], {"w": GOOD}, plan.to_dict())).ok
    assert not verify(tmp_path / "m.onnx", "1:4").ok
    with pytest.raises(nmstep.NotSparseError, match=r"'w'.*\[0, 0:4\] = \(1, 1, 2, 0\)"):
        verify(write(tmp_path / "m.onnx", [node], {"w": BAD}, plan.to_dict())).raise_if_failed()
    assert verify(write(tmp_path / "m.onnx", [node], {"w": GOOD}, {"pattern": "2:4"})).ok
    assert not verify(write(tmp_path / "m.onnx", [node], {"w": BAD}, {"pattern": "2:4"})).ok
    (tmp_path / "m.onnx").rename(tmp_path / "model.onnx")
    assert not verify(tmp_path).ok  # a folder
    with pytest.raises(ValueError, match="cannot read 'nm_sparsity'"):
        verify(write(tmp_path / "m.onnx", [node], {"w": GOOD}, {"entries": 3}))


def test_constants_are_weights_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor("", BAD)),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    assert [t.name for t in verify(write(tmp_path / "m.onnx", nodes, {}), "2:4").failed] == ["w"]


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [LAYERS["gemm"][0]], {"w": GOOD})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    assert verify(path, "2:4").ok
    (tmp_path / "m.data").unlink()
    with pytest.raises(ValueError, match=r"cannot read 'w' from .*m\.onnx"):
        verify(path, "2:4")


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [LAYERS["gemm"][0]], {"w": GOOD})
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"m\.onnx"):
            verify(path, "2:4")
    write(path, [], {})
    with pytest.raises(ValueError, match="holds no tensors"):
        verify(path, "2:4")


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", [LAYERS["gemm"][0]], {"w": GOOD})
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'nmstep\[onnx\]'"):
        verify(path, "2:4")


def test_values_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * 64))
    (tmp_path / "in").mkdir()
    tensor = onnx.TensorProto(name="w", dims=[8, 8], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [], [tensor])
    path = tmp_path / "in" / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ValueError, match="cannot read 'w' from"):
        verify(path, "2:4")
