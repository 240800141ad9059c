"""What a distributed checkpoint says that it holds: read as torch reads it, and never run."""

from __future__ import annotations

import datetime
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import nmstep
from nmstep.integrations import distributed
from nmstep.integrations.checkpoint_metadata import stored_sizes
from nmstep.integrations.distributed import prepare_load
from tiny import net, steps

torch.distributed.is_available() or pytest.skip(
    "this torch has no torch.distributed", allow_module_level=True
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.bool]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Returns a folder as torch writes it of a sparse run, and of values of every kind beside it."""
    model = net()
    optimizer = nmstep.AdamW(model.parameters())
    nmstep.sparsify(model, optimizer, nmstep.STE("2:4"))
    steps(model, optimizer, 1)
    weights, state = get_state_dict(model, optimizer)
    kinds = {str(dtype): torch.zeros(2, 0, 3).to(dtype) for dtype in DTYPES}
    image = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    values = {"model": weights, "optimizer": state, "kinds": kinds, "image": image, "epoch": 3}
    dcp.save({**values, "when": datetime.date(2024, 1, 1)}, checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def test_it_says_what_torch_reads(checkpoint: Path) -> None:
    expected = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    found = stored_sizes(checkpoint)
    assert found == {key: tuple(getattr(value, "size", ())) for key, value in expected.items()}
    assert found["optimizer.state.0.weight.pruned"] == (32, 16)
    assert found["epoch"] == ()
    assert stored_sizes(FileSystemReader(checkpoint)) == found


def test_members_of_enums_as_earlier_pythons_write_them(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def by_getattr(member: Any, protocol: int) -> tuple[Any, ...]:
        del protocol
        return getattr, (type(member), member.name)

    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_getattr)
    saved = request.getfixturevalue("checkpoint")
    assert b"getattr" in (saved / ".metadata").read_bytes()
    test_it_says_what_torch_reads(saved)


def test_a_reader_of_ones_own_reads_in_its_own_way(checkpoint: Path) -> None:
    class Own(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            found = super().read_metadata(*args, **kwargs)
            stored = found.state_dict_metadata
            found.state_dict_metadata = {f"own.{key}": value for key, value in stored.items()}
            return found

    assert stored_sizes(Own(checkpoint)) == {f"own.{k}": size for k, size in stored_sizes(checkpoint).items()}


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


def program(text: str) -> bytes:
    """Returns a pickle of protocol 0 with a few opcodes of its own."""
    return text.encode()


def hostile(ran: Path) -> dict[str, bytes]:
    plain = Metadata({})
    plain.planner_data = Runs(ran)
    name = "torch.distributed.checkpoint.metadata"
    return {
        "calls": pickle.dumps(plain),
        "calls eval": program(f"c__builtin__\neval\n(Vopen({str(ran)!r}, 'w')\ntR."),
        "reaches through a class": pickle.PROTO
        + b"\x04"
        + _global(name, "Metadata.__init__.__globals__")
        + b".",
        "imports": program("cantigravity\nfly\n."),
        "takes a function of torch": program("ctorch\nload\n."),
        # BUILD with a pair sets the second's entries as attributes: here of a class.
        "changes a class": program(f"c{name}\nMetadata\n(N(dVfield\nVowned\nstb."),
        "changes another": program("ctorch\nSize\n(N(dVfield\nVowned\nstb."),
        "is no record": pickle.dumps({"state_dict_metadata": {}}),
        "has no entries": pickle.dumps(Metadata(None)),  # type: ignore[arg-type]
        "a key that is none": pickle.dumps(Metadata({3: TensorStorageMetadata(None, torch.Size([1]), [])})),  # type: ignore[arg-type, dict-item]
        "a shape that is none": pickle.dumps(Metadata({"a": TensorStorageMetadata(None, "12", [])})),  # type: ignore[arg-type]
        "a negative shape": pickle.dumps(Metadata({"a": TensorStorageMetadata(None, (1, -2), [])})),  # type: ignore[arg-type]
        "is cut off": pickle.dumps(Metadata({}))[:-4],
        "is empty": b"",
        "is text": b"hello",
    }


def _global(module: str, name: str) -> bytes:
    buffer = io.BytesIO()
    for text in (module, name):
        buffer.write(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode())
    return buffer.getvalue() + pickle.STACK_GLOBAL


@pytest.mark.parametrize("case", hostile(Path("ran")))
def test_hostile_files_are_refused_and_not_run(case: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / ".metadata").write_bytes(hostile(ran)[case])
    with pytest.raises(ValueError, match=r"\.metadata' is not as torch\.distributed\.checkpoint writes it: "):
        stored_sizes(tmp_path)
    assert not ran.exists()


def test_the_hostile_file_would_have_run(tmp_path: Path) -> None:
    """Else the test above shows nothing."""
    (tmp_path / ".metadata").write_bytes(hostile(tmp_path / "ran")["calls"])
    FileSystemReader(tmp_path).read_metadata().planner_data.close()
    assert (tmp_path / "ran").exists()


def test_prepare_load_refuses_before_it_changes_anything(tmp_path: Path) -> None:
    model = net()
    optimizer = nmstep.AdamW(model.parameters())
    nmstep.sparsify(model, optimizer, nmstep.STEP("2:4", switch=nmstep.SwitchAt(5)))
    (tmp_path / ".metadata").write_bytes(hostile(tmp_path / "ran")["calls"])
    with pytest.raises(ValueError, match=r"it asks for (_io|io)\.open, which torch does not write there"):
        prepare_load(model, optimizer, tmp_path)
    assert not (tmp_path / "ran").exists()
    assert not optimizer.state


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no distributed checkpoint in"):
        stored_sizes(tmp_path)


def test_modules_called_state_are_found(tmp_path: Path) -> None:
    def made() -> tuple[nn.Module, nmstep.AdamW]:
        model = nn.ModuleDict({"state": nn.ModuleDict({"state": nn.Linear(8, 4)}), "weight": nn.Linear(8, 4)})
        optimizer = nmstep.AdamW(model.parameters())
        nmstep.sparsify(model, optimizer, nmstep.STE("2:4"))
        return model, optimizer

    model, optimizer = made()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "state": state}, checkpoint_id=tmp_path)
    fresh, other = made()
    prepare_load(fresh, other, tmp_path)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert optimizer.state[p].keys() <= other.state[q].keys()


def test_every_key_is_looked_at_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parameters there are: all keys were looked through for each of them."""
    looks = []

    class Counted(dict[str, Any]):
        def items(self) -> Any:
            looks.append(1)
            return super().items()

    monkeypatch.setattr(distributed, "stored_sizes", lambda path: Counted(stored_sizes(path)))
    model = net()
    optimizer = nmstep.AdamW(model.parameters())
    nmstep.sparsify(model, optimizer, nmstep.STE("2:4"))
    prepare_load(model, optimizer, checkpoint)
    assert "nmstep" in optimizer.state[model[0].weight]
    assert len(looks) == 1


def test_a_file_of_the_whole_state(tmp_path: Path) -> None:
    model, optimizer = sparse()
    steps(model, optimizer, 2)
    whole = StateDictOptions(full_state_dict=True)
    weights, state = get_state_dict(model, optimizer, options=whole)
    torch.save(state, tmp_path / "optimizer.pt")
    torch.save({"model": weights, "optimizer": state}, tmp_path / "both.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "optimizer.pt").read_bytes()[:-99])
    fresh, other = sparse()
    for name, told in {
        "both": r"both.pt' holds 'model', 'optimizer', not the 'state'",
        "cut": "truncated",
    }.items():
        with pytest.raises(ValueError, match=told):
            prepare_load(fresh, other, tmp_path / f"{name}.pt")
    prepare_load(fresh, other, tmp_path / "optimizer.pt")
    set_state_dict(fresh, other, model_state_dict=weights, optim_state_dict=state, options=whole)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["pruned"], other.state[q]["pruned"])


def sparse() -> tuple[nn.Module, nmstep.AdamW]:
    model = net()
    optimizer = nmstep.AdamW(model.parameters())
    nmstep.sparsify(model, optimizer, nmstep.STE("2:4"))
    return model, optimizer
