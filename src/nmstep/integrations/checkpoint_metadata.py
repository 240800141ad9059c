"""Reading what a distributed checkpoint says that it holds, without letting the file run code.

torch.distributed.checkpoint writes that as a pickle, ``.metadata``, and a pickle is a program. Each name that torch
writes there is replaced by a stand-in that keeps what it is given and does nothing else; others are refused. The
stand-ins have no writable attributes: a pickle cannot change them either.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import IO, Any

import torch

from nmstep.files import BROKEN_PICKLE

__all__ = ["stored_sizes"]

_FILE = ".metadata"


class _Fixed(type):
    """A class whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise AttributeError(f"{name!r} of {cls.__name__} is not to be set")


class _Record(metaclass=_Fixed):
    """What stands in for a class of torch's: its fields."""

    __slots__ = ("fields",)

    def __init__(self, *given: object) -> None:
        self.fields: object = given

    def __setstate__(self, state: object) -> None:
        self.fields = state

    def field(self, name: str) -> object:
        """Returns one of the fields by name, or None."""
        return self.fields.get(name) if isinstance(getattr(self, "fields", None), dict) else None  # type: ignore[attr-defined]


class _Size(tuple, metaclass=_Fixed):  # type: ignore[type-arg]
    """What stands in for torch.Size."""

    __slots__ = ()


_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    (_METADATA, "Metadata"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
    ("builtins", "getattr"),  # by which Python 3.11.0 to 3.11.3 name members of enums; nothing is got here
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _RECORDS:
            return _Record
        if (module, name) == ("torch", "Size"):
            return _Size
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which torch does not write there")


def stored_sizes(checkpoint: str | os.PathLike[str] | Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every value in a distributed checkpoint, by its key; () of what is no tensor.

    The file may come from anywhere: it can fail to load, it cannot run code.

    Args:
        checkpoint: the checkpoint's folder, or a ``StorageReader`` of torch.distributed.checkpoint. One that reads
            metadata in a way of its own is left to it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its ``.metadata`` asks for what torch does not write there, or is damaged.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    is_path = isinstance(checkpoint, (str, os.PathLike))
    reader: Any = FileSystemReader(checkpoint) if is_path else checkpoint
    if getattr(type(reader), "read_metadata", None) is not FileSystemReader.read_metadata:
        found: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        return {key: tuple(getattr(value, "size", ())) for key, value in found.items()}
    path = reader.fs.concat_path(reader.path, _FILE)
    try:
        with reader.fs.create_stream(path, "rb") as file:
            return _read(file, str(path))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no distributed checkpoint in {str(reader.path)!r}: it has no {_FILE}; give the folder that dcp.save "
            f"wrote to"
        ) from None


def _read(file: IO[bytes], path: str) -> dict[str, tuple[int, ...]]:
    try:
        found = _Reader(file).load()
        stored = found.field("state_dict_metadata")
        return {_text(key): _shape(value.field("size")) for key, value in stored.items()}
    except BROKEN_PICKLE as error:
        raise ValueError(
            f"{path!r} is not as torch.distributed.checkpoint writes it: {error}. torch might run code that is in "
            f"it, so nothing was loaded: if you know where it comes from, save it anew by the program that reads it"
        ) from error


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"a key is no text: {key!r}")
    return key


def _shape(size: object) -> tuple[int, ...]:
    if size is None:  # of what is stored as bytes
        return ()
    if not isinstance(size, tuple) or not all(type(n) is int and n >= 0 for n in size):
        raise ValueError(f"a shape is no tuple of sizes: {size!r}")
    return tuple(size)
