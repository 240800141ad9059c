"""``accelerate launch``: two processes end where one does, under DDP and under FSDP2, and the main one writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import integrated
import nmstep

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

FSDP2 = [
    "--use_fsdp",
    "--fsdp_version=2",
    "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
    "--fsdp_transformer_layer_cls_to_wrap=BertLayer",
    "--fsdp_state_dict_type=FULL_STATE_DICT",
]
# --cpu would start one process: it knows no other way to several than MPI.
WAYS = {"ddp": ["--multi_gpu"], "fsdp2": FSDP2}
STEPS = {"loop": 12, "resumed": 12, "resumed from parts": 12, "trainer": 8, "sharded": 8}
Launched = tuple[Path, dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process ends with."""
    import launched as script

    ended = script.run(tmp_path_factory.mktemp("alone"), 8)
    return {**ended, "sharded": ended["trainer"], "resumed from parts": ended["loop"]}


@pytest.fixture(scope="module", params=WAYS)
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Where two processes wrote, and what each of them ends with."""
    import launched as script

    folder = tmp_path_factory.mktemp("launched")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *WAYS[request.param],
        "--num_processes",
        "2",
    ]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", script.__file__, str(folder), "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert {kind["cut"] for kind in first.values()} == {request.param == "fsdp2"}
    return folder, first, second


def test_two_processes_end_where_one_does(launched: Launched, alone: dict[str, Any]) -> None:
    _, first, second = launched
    assert first.keys() >= {"loop", "resumed", "trainer"}
    for kind in first.keys() & {"resumed", "resumed from parts"}:  # after the switch
        assert all(
            torch.equal(first[kind]["weights"][name], p) for name, p in first["loop"]["weights"].items()
        )
    for kind in first:
        assert {r[kind]["switch_step"] for r in (alone, first, second)} == {alone[kind]["switch_step"]}
        assert alone[kind]["switch_step"] is not None
        assert alone[kind]["step"] == first[kind]["step"] == STEPS[kind]
        for name, weight in alone[kind]["weights"].items():
            assert torch.equal(first[kind]["weights"][name], second[kind]["weights"][name])
            torch.testing.assert_close(first[kind]["weights"][name], weight, atol=2e-5, rtol=1e-4)
            if name.startswith(integrated.ENCODER) and weight.dim() == 2:
                assert torch.equal(first[kind]["weights"][name] != 0, weight != 0)
                assert integrated.most_kept(weight) == 2


def test_of_two_processes_the_main_one_writes(launched: Launched) -> None:
    folder, first, second = launched
    assert (first["loop"]["marked"], second["loop"]["marked"]) == (True, False)
    for kind, place in (("loop", folder / "loop"), ("trainer", folder / "trainer" / "checkpoint-8")):
        assert integrated.is_sparse(place)
        assert nmstep.verify(place).ok
        written = load_file(place / "model.safetensors")
        assert written.keys() == first[kind]["weights"].keys()
        assert all(torch.equal(written[name], weight) for name, weight in first[kind]["weights"].items())
    lines = (folder / "trainer" / "nm_trace.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
