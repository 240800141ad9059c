"""Reading the CIFAR pickles without letting a pickle run code.

A pickle is a program. The official CIFAR files need four things of it beyond plain values: making a numpy
dtype, making an array, filling it, and (when written by Python 3) making bytes from text. Each is replaced
by a stand-in of this module that can do only that; every other name is refused, so nothing of numpy or of
any other library is imported or called. The stand-ins have no writable attributes: a pickle cannot change
them either.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import torch
from torch import Tensor

from nmstep.files import BROKEN_PICKLE


class ByteArray:
    """What stands in for a numpy array: its shape and its bytes, unchecked until `tensor` is called."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(
        self, shape: object = None, dtype: object = None, fortran: object = False, data: object = b""
    ):
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, fortran, data

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def tensor(self) -> Tensor:
        """Returns the array as a uint8 tensor of its own memory.

        Raises:
            ValueError: if it is not a C-ordered uint8 array whose bytes fill its shape.
        """
        shape, data = self.shape, self.data
        code = self.dtype.code if isinstance(self.dtype, _Dtype) else None
        if code not in ("u1", b"u1", "|u1", "uint8") or self.fortran:
            raise ValueError(f"expected a C-ordered uint8 array, found dtype {code!r}")
        if not isinstance(shape, tuple) or not all(type(size) is int and size > 0 for size in shape):
            raise ValueError(f"expected an array with positive sizes, found shape {shape!r}")
        if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape):
            raise ValueError(f"the array's bytes do not fill its shape {shape}")
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)


class _Dtype:
    __slots__ = ("code",)

    def __init__(self, code: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and the like, which one-byte numbers do not have."""


class _MakeDtype:
    __slots__ = ()

    def __call__(self, code: object, *_: object) -> _Dtype:
        return _Dtype(code)


class _ArrayType:
    __slots__ = ()


class _MakeArray:
    __slots__ = ()

    def __call__(self, *_: object) -> ByteArray:
        return ByteArray()


class _FromBuffer:
    __slots__ = ()

    def __call__(
        self, data: object, dtype: object, shape: object, order: object = "C", *_: object
    ) -> ByteArray:
        return ByteArray(shape, dtype, order != "C", data)


class _Encode:
    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"refused to encode text as {encoding!r}")
        return text.encode("latin1")


_PERMITTED: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _MakeDtype(),
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer(),
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer(),
    ("_codecs", "encode"): _Encode(),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _PERMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"refused {module}.{name}: a data file needs only arrays, bytes, numbers, lists and dicts"
            ) from None


def read_pickle(path: Path) -> dict[str, object]:
    """Returns the dictionary in a pickle, keys as text, numpy arrays as `ByteArray`.

    Text that Python 2 wrote comes back as bytes. The file may come from anywhere: it can fail to load, it
    cannot run code.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged, asks for anything but plain data, or holds no dictionary.
    """
    with path.open("rb") as file:
        try:
            value = _Reader(file, encoding="bytes").load()
        except BROKEN_PICKLE as error:
            raise ValueError(
                f"cannot read {str(path)!r} as a pickle of plain data: {error}; "
                "get the file again from its publisher"
            ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} holds a {type(value).__name__}, not the dictionary of a data file")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): item for key, item in value.items()}
