"""Running N:M models: packed storage, packed layers, and exports."""

from nmstep.deploy.converting import PackedFile, pack_file
from nmstep.deploy.exporting import Exported, export_dense
from nmstep.deploy.layer import PackedLayer, Parts
from nmstep.deploy.layers import PackedConv, PackedLinear
from nmstep.deploy.packing import pack, packed_layers, unpack
from nmstep.deploy.reading import load_packed
from nmstep.deploy.semi_structured import SemiStructured, SemiStructuredLinear, to_semi_structured
from nmstep.deploy.to_onnx import ExportedOnnx, export_onnx
from nmstep.deploy.writing import save_packed

__all__ = ["Exported", "ExportedOnnx", "PackedConv", "PackedFile", "PackedLayer", "PackedLinear", "Parts"]
__all__ += ["SemiStructured", "SemiStructuredLinear", "export_dense", "export_onnx", "load_packed", "pack"]
__all__ += ["pack_file", "packed_layers", "save_packed", "to_semi_structured", "unpack"]
