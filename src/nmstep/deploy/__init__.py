"""Running N:M models: packed storage and packed layers."""

from nmstep.deploy.converting import PackedFile, pack_file
from nmstep.deploy.layers import PackedConv, PackedLayer, PackedLinear
from nmstep.deploy.packing import pack, packed_layers, unpack
from nmstep.deploy.reading import load_packed
from nmstep.deploy.semi_structured import SemiStructured, SemiStructuredLinear, to_semi_structured
from nmstep.deploy.writing import save_packed

__all__ = ["PackedConv", "PackedFile", "PackedLayer", "PackedLinear", "load_packed", "pack", "pack_file"]
__all__ += [
    "SemiStructured",
    "SemiStructuredLinear",
    "packed_layers",
    "save_packed",
    "to_semi_structured",
    "unpack",
]
