"""Which kernels are active is decided once a process, so each case has one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from nmstep.kernels import status

CODE = """
import sys
if "hide" in sys.argv:
    sys.modules["nmstep.kernels._cpu"] = None
import torch, nmstep
from nmstep.kernels import status
w = torch.tensor([[3.0, -4.0, 1.0, 2.0]])
assert nmstep.nm_mask(w, "2:4").tolist() == [[True, True, False, False]]
print(status().active, "|", status().why)
nmstep.AdamW([torch.nn.Parameter(w)], fused=True)
"""


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


def test_without_compiled_kernels_plain_torch_does_the_work() -> None:
    code, out, err = run("hide", NMSTEP_KERNELS="")
    assert out.startswith("torch | not compiled when nmstep was installed")
    assert code == 1
    assert "RuntimeError: fused=True needs nmstep's kernels: not compiled" in err


@pytest.mark.parametrize("name", status().usable)
def test_the_environment_chooses(name: str) -> None:
    code, out, _ = run(NMSTEP_KERNELS=name)
    assert out == f"{name} | NMSTEP_KERNELS={name}\n"
    assert code == (1 if name == "torch" else 0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_where_there_is_a_compiler_there_are_kernels() -> None:
    # Every other test of the kernels is skipped without them, which must not go unnoticed.
    assert "plain" in status().usable


def test_an_unknown_choice_is_answered_with_the_nearest() -> None:
    code, _, err = run(NMSTEP_KERNELS="torhc")
    assert code == 1
    assert "ValueError: NMSTEP_KERNELS='torhc': did you mean 'torch'?" in err
