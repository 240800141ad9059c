"""Running N:M models: packed storage and packed layers."""

from nmstep.deploy.converting import PackedFile, pack_file
from nmstep.deploy.layer import PackedLayer, Parts
from nmstep.deploy.layers import PackedConv, PackedLinear
from nmstep.deploy.packing import pack, packed_layers, unpack
from nmstep.deploy.reading import load_packed
from nmstep.deploy.writing import save_packed

__all__ = [
    "PackedConv",
    "PackedFile",
    "PackedLayer",
    "PackedLinear",
    "Parts",
    "load_packed",
    "pack",
    "pack_file",
]
__all__ += ["packed_layers", "save_packed", "unpack"]
