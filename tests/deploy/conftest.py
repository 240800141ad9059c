from __future__ import annotations

from collections.abc import Iterator

import pytest

from nmstep.deploy import layer


@pytest.fixture(autouse=True)
def _small_layers_run_packed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets the small layers of tests be held as large ones are; those of test_fallback.py are not."""
    if request.path.name == "test_fallback.py":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "is_better_dense", lambda *_: False)
        yield
