from __future__ import annotations

from collections.abc import Iterator

import pytest

from nmstep import kernels
from nmstep.kernels.native import kernels as compiled

USABLE = [name for name in kernels.status().usable if name != "torch"]


@pytest.fixture(params=USABLE or ["none"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on each instruction set of this processor."""
    module = compiled()
    if module is None:
        pytest.skip(f"no compiled kernels: {kernels.status().why}")
    before = module.active()
    module.use(request.param)
    yield request.param
    module.use(before)
