"""What goes wrong where one rank writes is raised on all of them: none waits for one that is gone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import saving
from launch import launched, results
from safetensors.torch import load_file

import nmstep


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    for package in ("transformers", "accelerate", "lightning"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("saving")
    return folder, results(launched(2, saving.everything, folder))


NOT_SPARSE = r"NotSparseError: on rank 0: .*2\.weight"
SAME = {
    "not_sparse": NOT_SPARSE,
    "a_file_is_there": r"OSError: on rank 0: .*File exists.*a_file_is_there",
    "a_trainers_checkpoint": NOT_SPARSE,
    "no_room_for_a_trainers_trace": r"OSError: on rank 0: .*No space left on device",
    "no_folder_for_a_trainers_trace": r"OSError: on rank 0: .*no_folder_for_a_trainers_trace",
    "lightnings_checkpoint": NOT_SPARSE,
}


@pytest.mark.parametrize("case", SAME)
def test_every_rank_is_told_the_same(ended: Any, case: str) -> None:
    _, (first, second) = ended
    assert re.search(SAME[case], first[case], re.DOTALL), first[case]
    assert second[case] == first[case]


def test_shards_are_put_together(ended: Any) -> None:
    folder, (first, second) = ended
    assert (first["in_shards"]["marked"], second["in_shards"]["marked"]) == (True, False)
    written = load_file(folder / "in_shards" / "model.safetensors")
    assert written.keys() == first["in_shards"]["whole"].keys()
    assert all((written[name] == value).all() for name, value in first["in_shards"]["whole"].items())
    report = nmstep.verify(folder / "in_shards")
    assert report.ok
    assert [tensor.name for tensor in report.checked] == ["0.weight", "2.weight", "4.weight"]
