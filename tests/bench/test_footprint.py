from pathlib import Path

import pytest
import torch
from torch import nn

import nmstep
from nmstep.bench import Subject, Use, footprints
from nmstep.bench.resident import Job, added_memory

PROC = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


def subject_of(dense, pattern="1:16", file=None):
    dense.eval().requires_grad_(False)
    for module in dense.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(nmstep.nm_mask(module.weight, pattern))
    size = dense[0].in_features
    return Subject(
        name="it",
        dense=dense,
        packed=nmstep.pack(dense),
        use=lambda count: Use(positional=(torch.ones(count, size),)),
        what="a row",
        file=file,
    )


def test_files_hold_the_tensors_and_a_header(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    told = []
    subject = subject_of(model, "2:4")
    found = footprints(subject, memory=False, tell=told.append)
    floats, counter = 64 * 64 + 64 + 4 * 64, 8
    # Values in fp32; the indices of 2:4 take half an fp32 word for each group of four.
    bits = 64 * 64 // 4 * 4 // 8
    expected = {
        "dense": 4 * floats + counter,
        "dense bf16": 2 * floats + counter,
        "packed": 4 * (floats - 64 * 64 // 2) + bits + counter,
    }
    assert told == list(expected)
    for name, least in expected.items():
        assert least < found[name].file < least + 1200, name
        assert (found[name].loaded, found[name].used) == (None, None)
    nmstep.save_packed(subject.packed, tmp_path / "p.safetensors")
    assert found["packed"].file == (tmp_path / "p.safetensors").stat().st_size
    assert model[0].weight.dtype == torch.float32


def test_a_packed_file_that_is_there_is_the_one_that_counts(tmp_path):
    file = tmp_path / "p.safetensors"
    subject = subject_of(nn.Sequential(nn.Linear(16, 16)), file=file)
    nmstep.save_packed(subject.packed, file)
    with file.open("ab") as longer:
        longer.write(b" " * 5000)
    assert footprints(subject, memory=False)["packed"].file == file.stat().st_size


@PROC
def test_memory_is_that_of_a_fresh_process():
    torch.set_num_threads(1)
    found = footprints(subject_of(nn.Sequential(nn.Linear(4096, 4096, bias=False))))
    weight = 4 * 4096**2
    assert found["dense"].loaded < weight / 4  # mapped, and not read yet
    assert 0.9 * weight < found["dense"].used < 1.5 * weight
    assert 0.4 * weight < found["dense bf16"].used < 1.5 * weight
    assert weight / 16 < found["packed"].used < 0.9 * weight


def job(skeleton, file):
    return Job(skeleton=skeleton, file=file, packed=False, use=Use(), threads=1)


@PROC
def test_memory_of_a_model_that_no_other_process_knows_is_unknown(tmp_path, monkeypatch):
    class Inner(nn.Linear):
        """Cannot be pickled."""

    assert added_memory(job(Inner(2, 2), tmp_path / "x")) is None
    monkeypatch.setattr("nmstep.bench.resident._STATM", tmp_path / "nothing")
    assert added_memory(job(nn.Linear(2, 2), tmp_path / "x")) is None


@PROC
def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"was to load x.safetensors failed \(1\): FileNotFoundError"):
        added_memory(job(nn.Linear(2, 2), tmp_path / "x.safetensors"))
