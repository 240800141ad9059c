"""Opening ONNX files: their weights, and along which dimension each layer of the graph sums over them.

Exporters rename and turn weights, so that the names and shapes of a file say little; its graph says more.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmstep.packages import require
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import PlanEntry, SparsityPlan
from nmstep.verify.stored import NM_SPARSITY, Stored, StoredTensor, parse_promise

__all__ = ["open_onnx"]

_ANY = NMPattern(1, 1)  # stands where a pattern is still to be asked for


def open_onnx(path: Path) -> Stored:
    """Returns the initializers and constants of an ONNX file, which may lie in files beside it.

    Raises:
        ValueError: the file is damaged, or holds no tensors.
        ImportError: onnx is not installed.
    """
    onnx = require("onnx", f"reading {str(path)!r}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own, which need not be imported to be damaged
        text = str(error).partition("\n")[0]
        raise ValueError(
            f"cannot read {str(path)!r}: no ONNX file ({type(error).__name__}: {text})"
        ) from error
    protos = {proto.name: proto for proto in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            protos |= {
                name: item.t for item in node.attribute for name in node.output if item.name == "value"
            }
    if not protos:
        raise ValueError(f"{str(path)!r} holds no tensors")
    floating = {getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")}
    tensors = {
        name: StoredTensor(
            tuple(proto.dims), proto.data_type in floating, partial(_read, onnx, path, name, proto)
        )
        for name, proto in protos.items()
    }
    metadata = {item.key: item.value for item in model.metadata_props}
    promise = parse_promise(metadata[NM_SPARSITY], str(path)) if NM_SPARSITY in metadata else None
    shapes = {name: tensor.shape for name, tensor in tensors.items() if tensor.is_floating}
    return Stored(str(path), tensors, promise, metadata, _layout(model.graph, shapes))


def _read(onnx: Any, path: Path, name: str, proto: Any) -> Tensor:
    try:
        array = onnx.numpy_helper.to_array(proto, base_dir=str(path.parent))
        if proto.data_type == onnx.TensorProto.BFLOAT16:
            return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())
    except Exception as error:  # whatever is wrong with sizes, types and files beside it
        raise ValueError(f"cannot read {name!r} from {str(path)!r}: {error}") from error


def _layout(graph: Any, shapes: dict[str, tuple[int, ...]]) -> SparsityPlan:
    """Returns a plan that has each weight that a product or convolution reads, with the dimension it sums over."""
    turned = _turned(graph)
    uses: dict[str, list[tuple[str, int | None]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            source, order = turned.get(name, (name, None))
            if source in shapes and node.op_type != "Transpose":
                order = order or list(range(len(shapes[source])))
                dim = _summed(node, place, len(order))
                uses.setdefault(source, []).append((node.op_type, None if dim is None else order[dim]))
    return SparsityPlan(tuple(_entry(name, shape, uses.get(name, [])) for name, shape in shapes.items()))


def _turned(graph: Any) -> dict[str, tuple[str, list[int]]]:
    """Returns which tensor each Transpose reads, and in which order its dimensions come out."""
    return {
        node.output[0]: (node.input[0], list(item.ints))
        for node in graph.node
        if node.op_type == "Transpose"
        for item in node.attribute
        if item.name == "perm"
    }


def _summed(node: Any, place: int, dims: int) -> int | None:
    """Returns the dimension of an input that a node sums over, or None where the input is no weight."""
    flags = {item.name: item.i for item in node.attribute}
    match node.op_type, place:
        case ("Gemm", 1) if dims == 2:
            return 1 if flags.get("transB") else 0
        case ("Gemm", 0) if dims == 2:
            return 0 if flags.get("transA") else 1
        case ("MatMul", 1) if dims >= 2:
            return dims - 2
        case ("MatMul", 0) if dims >= 2:
            return dims - 1
        case ("Conv", 1) if dims >= 3:
            return 1
        case ("ConvTranspose", 1) if dims >= 3 and flags.get("group", 1) == 1:
            return 0
    return None


def _entry(name: str, shape: tuple[int, ...], uses: list[tuple[str, int | None]]) -> PlanEntry:
    kinds = " and ".join(dict.fromkeys(kind for kind, _ in uses)) or "nothing"
    dims = {dim for _, dim in uses}
    dim = dims.pop() if len(dims) == 1 else None
    if dim is None:
        return PlanEntry(
            name=name, shape=shape, kind=kinds, reason=f"read by {kinds}, not as a layer's weight"
        )
    return PlanEntry(name=name, shape=shape, kind=kinds, pattern=_ANY, dim=dim, reason=f"weight of {kinds}")
