from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from nmstep import kernels, late, trace
from nmstep.kernels import native
from nmstep.optim import gradients

if TYPE_CHECKING:
    from emulated_graph import Emulator

USABLE = [name for name in kernels.status().usable if name not in ("torch", "triton")]


@pytest.fixture(params=USABLE or ["none"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on each instruction set of this processor."""
    module = native.kernels()
    if module is None:
        pytest.skip(f"no compiled kernels: {kernels.status().why}")
    before = module.active()
    module.use(request.param)
    yield request.param
    module.use(before)


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where Triton's kernels run: a GPU, or the CPU in their interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    monkeypatch.setenv("NMSTEP_KERNELS", "triton")
    native._load.cache_clear()
    yield torch.device("cpu")
    native._load.cache_clear()


@pytest.fixture
def emulator(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Plays CUDA graphs on the CPU, where Triton's interpreter plays the GPU."""
    assert triton_device.type == "cpu"
    from emulated_graph import Emulator  # loads Triton

    return Emulator(monkeypatch)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads everything as late as from a GPU."""
    for module in (late, gradients, trace):
        monkeypatch.setattr(module, "is_away", lambda _: True)
    monkeypatch.setattr(trace, "_off_the_host_heap", lambda value: value)
