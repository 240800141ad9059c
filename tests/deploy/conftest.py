from __future__ import annotations

import pytest

from nmstep.kernels import packed


@pytest.fixture(autouse=True)
def none_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tests with small layers run the packed kernels."""
    monkeypatch.setattr(packed, "_SMALL", 0)
