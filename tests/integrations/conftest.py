"""The programs of this folder are imported by their tests too."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def little_to_collect() -> Iterator[None]:
    """The Trainer collects garbage before it starts, which takes a second once all of these packages are loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def quiet_trainer() -> Iterator[None]:
    """Without the progress bars of transformers."""
    logging = pytest.importorskip("transformers").utils.logging
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
