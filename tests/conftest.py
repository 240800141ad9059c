"""Shared by all tests: one torch thread, a fixed seed, no network."""

from __future__ import annotations

import os

import pytest
import torch

# Before anything makes a console: what is printed must not depend on the terminal that runs the tests.
os.environ["TERM"] = "dumb"
os.environ["COLUMNS"] = "80"
# Before anything loads Triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
