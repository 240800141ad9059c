import os
import pickle
import struct

import numpy as np
import pytest

from nmstep.tasks.safe_pickle import ByteArray, read_pickle


class Hostile:
    """Runs a command when unpickled by the standard library."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def python2_pickle(rows, labels):
    """Returns the bytes that Python 2's cPickle wrote for the official files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    raw = rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01"
        + b"M"
        + struct.pack("<H", rows.shape[0])
        + b"M"
        + struct.pack("<H", rows.shape[1])
        + b"\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)


def test_reads_what_python_2_wrote(tmp_path, rows):
    written = python2_pickle(rows, [3, 1, 2])
    assert np.array_equal(
        pickle.loads(written, encoding="bytes")[b"data"], rows
    )  # the recipe itself is right
    (tmp_path / "batch").write_bytes(written)
    value = read_pickle(tmp_path / "batch")
    assert value["labels"] == [3, 1, 2]
    assert np.array_equal(value["data"].tensor().numpy(), rows)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", ["data", b"data"])
def test_reads_every_protocol(tmp_path, rows, protocol, key):
    (tmp_path / "batch").write_bytes(pickle.dumps({key: rows, "other": b"\xff"}, protocol=protocol))
    value = read_pickle(tmp_path / "batch")
    assert value["other"] == b"\xff"
    assert np.array_equal(value["data"].tensor().numpy(), rows)


@pytest.mark.parametrize(
    ("call", "arguments", "name"),
    [
        (os.system, ("touch PWNED",), r"(posix|nt)\.system"),
        (eval, ("open('PWNED', 'w')",), r"(builtins|__builtin__)\.eval"),
        (np.save, ("PWNED", [1]), r"numpy\.save"),
        (getattr, (os, "system"), r"(builtins|__builtin__)\.getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, call, arguments, name, protocol):
    monkeypatch.chdir(tmp_path)
    arguments = tuple("os" if argument is os else argument for argument in arguments)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({b"data": Hostile(call, *arguments)}, protocol=protocol))
    with pytest.raises(
        ValueError, match=rf"cannot read .*batch.*: refused {name}: a data file needs only arrays"
    ):
        read_pickle(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["batch"]


def test_a_pickle_cannot_alter_what_stands_in_for_numpy(tmp_path, rows):
    # BUILD with a slot state asks for setattr(numpy.dtype, "__call__", 1).
    (tmp_path / "batch").write_bytes(b"\x80\x02cnumpy\ndtype\n(N}X\x08\x00\x00\x00__call__K\x01stb.")
    with pytest.raises(ValueError, match="cannot read"):
        read_pickle(tmp_path / "batch")
    (tmp_path / "good").write_bytes(pickle.dumps({"data": rows}, protocol=2))
    assert np.array_equal(read_pickle(tmp_path / "good")["data"].tensor().numpy(), rows)


def test_odd_encodings_are_refused(tmp_path):
    (tmp_path / "batch").write_bytes(
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R."
    )
    with pytest.raises(ValueError, match="refused to encode text as 'zlib'"):
        read_pickle(tmp_path / "batch")


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps({"a": 1})[:-3], b"\x80\x02K\x01\x85R."]
)
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read '.*batch' as a pickle .*get the file again"):
        read_pickle(tmp_path / "batch")


def test_only_a_dictionary_will_do(tmp_path):
    (tmp_path / "batch").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="holds a list, not the dictionary of a data file"):
        read_pickle(tmp_path / "batch")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), dtype=np.float32), "expected a C-ordered uint8 array, found dtype 'f4'"),
        (np.zeros((2, 3), dtype=np.uint8, order="F"), "expected a C-ordered uint8 array"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, array, message):
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": array}, protocol=2))
    with pytest.raises(ValueError, match=message):
        read_pickle(tmp_path / "batch")["data"].tensor()


def test_an_array_whose_bytes_do_not_fill_it_is_refused(tmp_path):
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": np.zeros((2, 3), dtype=np.uint8)}, protocol=4))
    array = read_pickle(tmp_path / "batch")["data"]
    assert isinstance(array, ByteArray)
    array.shape = (0, 3)
    with pytest.raises(ValueError, match=r"expected an array with positive sizes, found shape \(0, 3\)"):
        array.tensor()
    array.shape = (1 << 40, 3)
    with pytest.raises(ValueError, match=r"the array's bytes do not fill its shape \(1099511627776, 3\)"):
        array.tensor()
