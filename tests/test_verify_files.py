"""Verification of files and folders: every form, and every way in which they can be broken."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nmstep
from nmstep import nm_mask
from nmstep import plan as make_plan
from nmstep.sparsity_plan import SparsityPlan
from nmstep.verify import verify


def model_and_plan() -> tuple[nn.Module, SparsityPlan]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).bfloat16()
    plan = make_plan(model, "2:4")
    with torch.no_grad():
        for p in plan.resolve(model).values():
            p.mul_(nm_mask(p, "2:4"))
    return model, plan


def state_of(*, broken: bool = False) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in model_and_plan()[0].state_dict().items()}
    if broken:
        state["2.weight"][3, 4:] = torch.tensor([1.0, 2.0, 3.0, 0.0])
    return state


PLAN = model_and_plan()[1].to_dict()
BROKEN = r"(?s)1 of 2 tensors failed.*'2.weight' \(2:4 along dimension 1\).*\[3, 4:8\] = \(1, 2, 3, 0\)"


def write_safetensors(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, folder / "x.safetensors", metadata={"nm_sparsity": json.dumps(PLAN), "format": "pt"})
    return folder / "x.safetensors"


def write_pickle(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state, "nm_sparsity": PLAN, "step": 3}, folder / "x.pt")
    return folder / "x.pt"


def write_old_pickle(folder: Path, state: dict[str, Tensor]) -> Path:
    values = {"state_dict": state | {"nothing": None}, "nm_sparsity": json.dumps(PLAN)}
    torch.save(values, folder / "x.pth", _use_new_zipfile_serialization=False)
    return folder / "x.pth"


def write_run_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text('{"task": "digits", "pattern": "2:4"}')
    save_file(state, folder / "model.safetensors", metadata={"nm_sparsity": json.dumps(PLAN)})
    return folder


def write_hub_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "nm_sparsity": PLAN}))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_hub_pattern(folder: Path, state: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps({"nm_sparsity": {"pattern": "2:4"}}))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def write_shards(folder: Path, state: dict[str, Tensor], suffix: str = "safetensors") -> Path:
    (folder / "config.json").write_text(json.dumps({"nm_sparsity": PLAN}))
    places = {}
    for i, prefix in enumerate(("0", "2")):
        shard = {name: value for name, value in state.items() if name.startswith(prefix)}
        name = f"model-{i + 1:05}-of-00002.{suffix}"
        if suffix == "safetensors":
            save_file(shard, folder / name)
        else:
            torch.save(shard, folder / name)
        places |= dict.fromkeys(shard, name)
    index = "model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder


def write_bin_shards(folder: Path, state: dict[str, Tensor]) -> Path:
    return write_shards(folder, state, "bin")


WRITERS = [
    write_safetensors,
    write_pickle,
    write_old_pickle,
    write_run_folder,
    write_hub_folder,
    write_hub_pattern,
    write_shards,
    write_bin_shards,
]
Writer = Callable[[Path, dict[str, Tensor]], Path]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_is_verified_by_what_it_carries(write: Writer, tmp_path: Path) -> None:
    report = verify(write(tmp_path, state_of()))
    report.raise_if_failed()
    assert [t.name for t in report.checked] == ["0.weight", "2.weight"]
    assert {t.groups for t in report.checked} == {16, 8}
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_shows_its_broken_group(write: Writer, tmp_path: Path) -> None:
    report = verify(str(write(tmp_path, state_of(broken=True))))
    assert not report.ok
    with pytest.raises(ValueError, match=BROKEN):
        report.raise_if_failed()


@pytest.mark.parametrize("write", [write_safetensors, write_pickle, write_shards])
def test_a_planned_tensor_that_is_absent(write: Writer, tmp_path: Path) -> None:
    state = state_of()
    del state["2.weight"]
    report = verify(write(tmp_path, state))
    assert [(t.name, t.status) for t in report.failed] == [("2.weight", "missing")]


def test_prefixes_of_wrapped_models_are_tolerated(tmp_path: Path) -> None:
    state = {f"module._orig_mod.{name}": value for name, value in state_of().items()}
    assert verify(write_safetensors(tmp_path, state)).ok


def test_a_pattern_or_plan_of_the_caller_comes_first(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, state_of())
    assert not verify(path, "1:4").ok
    assert verify(path, "4:8").ok
    assert verify(path, plan=make_plan(nn.Sequential(nn.Linear(8, 8)), "2:4")).checked[0].name == "0.weight"
    assert [t.name for t in verify(path, exclude=["0"]).checked] == ["2.weight"]


def test_without_plan_or_pattern_one_must_be_given(tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors does not say which pattern it has: give one"):
        verify(tmp_path / "x.safetensors")
    assert verify(tmp_path / "x.safetensors", "2:4").ok


def test_a_tied_tensor_is_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    plan = make_plan(model, "2:4")
    kept = (model[0].weight * nm_mask(model[0].weight, "2:4")).detach()
    save_file(
        {"1.weight": kept}, tmp_path / "x.safetensors", metadata={"nm_sparsity": json.dumps(plan.to_dict())}
    )
    assert [(t.name, t.status) for t in verify(tmp_path / "x.safetensors").tensors] == [("1.weight", "ok")]


def test_a_checkpoint_of_training_verifies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    optimizer = nmstep.AdamW(model.parameters(), lr=1e-2)
    sparsifier = nmstep.sparsify(model, optimizer, nmstep.SRSTE("1:4"))
    for _ in range(3):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "nm_sparsity": sparsifier.plan.to_dict(),
        },
        tmp_path / "checkpoint-3.pt",
    )
    verify(tmp_path / "checkpoint-3.pt").raise_if_failed()


# -- what must be refused -------------------------------------------------------------------------


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"model": state_of(), "x": Hostile(trap)}, tmp_path / "new.pt")
    torch.save({"x": Hostile(trap)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.bin").write_bytes(pickle.dumps({"x": Hostile(trap)}, protocol=2))
    for name in ("new.pt", "old.pt", "raw.bin"):
        with pytest.raises(
            ValueError, match=r"refused to open .*needs the code of '\w+\.mkdir'.*weights_only=True"
        ):
            verify(tmp_path / name, "2:4")
    assert not trap.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 4), tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"needs the code of 'torch\.nn\.modules\.linear\.Linear'.*Save the state_dict"
    ):
        verify(tmp_path / "x.pt", "2:4")


@pytest.mark.parametrize("write", [write_safetensors, write_pickle, write_old_pickle])
@pytest.mark.parametrize("damage", ["half", "head", "garbage", "flipped"])
def test_damaged_files(write: Writer, damage: str, tmp_path: Path) -> None:
    path = write(tmp_path, state_of())
    whole = path.read_bytes()
    path.write_bytes(
        {
            "half": whole[: len(whole) // 2],
            "head": whole[:5],
            "garbage": b"this is no checkpoint " * 20,
            "flipped": bytes(b ^ 0xFF for b in whole[:120]) + whole[120:],
        }[damage]
    )
    with pytest.raises(
        ValueError, match=r"cannot read '.*x\.\w+' \([\d,]+ bytes\): it is truncated, corrupted or no"
    ):
        verify(path, "2:4")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin"])
def test_empty_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="the file is empty"):
        verify(tmp_path / name, "2:4")


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing to read at '.*gone.pt': no such file or folder"):
        verify(tmp_path / "gone.pt", "2:4")
    with pytest.raises(FileNotFoundError, match=r"expected one of model.safetensors.*found nothing"):
        verify(tmp_path, "2:4")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"found 'notes.txt'"):
        verify(tmp_path, "2:4")
    with pytest.raises(ValueError, match=r"notes.txt': expected one of .safetensors, .pt"):
        verify(tmp_path / "notes.txt", "2:4")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt' holds a list: expected a state dict"):
        verify(tmp_path / "list.pt", "2:4")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"none.safetensors' holds no tensors"):
        verify(tmp_path / "none.safetensors", "2:4")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        verify(tmp_path / "pipe.pt", "2:4")


@pytest.mark.parametrize(
    "promise",
    [
        "{",
        "2:4:8",
        '{"version": 2, "entries": []}',
        '{"entries": [{}]}',
        "{}",
        "[1]",
        '{"pattern": 3}',
        "[" * 9999,
    ],
)
def test_a_promise_that_cannot_be_read(promise: str, tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "x.safetensors", metadata={"nm_sparsity": promise})
    with pytest.raises(ValueError, match=r"cannot read 'nm_sparsity' of .*x.safetensors: expected a plan"):
        verify(tmp_path / "x.safetensors")


def test_a_broken_config_or_index(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, state_of())
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match=r"config.json' is damaged: not a JSON file"):
        verify(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json' is damaged: expected a JSON object, found list"):
        verify(folder)
    (folder / "config.json").write_text(json.dumps({"nm_sparsity": 7}))
    with pytest.raises(ValueError, match=r"cannot read 'nm_sparsity' of .*config.json"):
        verify(folder)
    (folder / "config.json").unlink()

    def with_map(weight_map: Any) -> Path:
        index.write_text(json.dumps({"weight_map": weight_map}))
        return folder

    for bad in (None, {}, {"a": 3}, ["a"]):
        with pytest.raises(ValueError, match="has no 'weight_map'"):
            verify(with_map(bad), "2:4")
    with pytest.raises(ValueError, match=r"points outside of its folder: '\.\./x\.safetensors'"):
        verify(with_map({"a": "../x.safetensors"}), "2:4")
    with pytest.raises(FileNotFoundError, match=r"names shard 'gone\.safetensors', which is not beside it"):
        verify(with_map({"a": "gone.safetensors"}), "2:4")
    with pytest.raises(ValueError, match=r"places 'a' in 'model-00001.*', which does not hold it"):
        verify(with_map(good["weight_map"] | {"a": good["weight_map"]["0.weight"]}), "2:4")
    assert verify(with_map(good["weight_map"]), "2:4").ok


def test_without_safetensors_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path, state_of())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'nmstep\[cli\]'"):
        verify(path)


def test_tensors_are_read_one_at_a_time_and_only_when_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmstep.verify import files

    read = []
    original = files._read_safetensor
    monkeypatch.setattr(
        files, "_read_safetensor", lambda path, file, name: read.append(name) or original(path, file, name)
    )
    assert verify(write_safetensors(tmp_path, state_of())).ok
    assert read == ["0.weight", "2.weight"]


def test_a_checkpoint_of_a_run_says_what_it_promises(tmp_path):
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    module = torch.nn.Linear(4, 1, bias=False)
    module.weight.data = weight
    plan = nmstep.plan(module, "2:4")
    path = tmp_path / "checkpoint-3.pt"
    torch.save({"training": {"model": module.state_dict(), "nm_sparsity": json.dumps(plan.to_dict())}}, path)
    assert nmstep.verify(path).ok
    module.weight.data[0, 1] = 1.0
    torch.save({"training": {"model": module.state_dict(), "nm_sparsity": json.dumps(plan.to_dict())}}, path)
    assert not nmstep.verify(path).ok
