from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nmstep import kernels
from nmstep.kernels import native

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
