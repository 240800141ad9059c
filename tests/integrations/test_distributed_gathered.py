"""Weights that FSDP2 holds gathered from an evaluation are gathered anew where nmstep has written to the shards."""

from __future__ import annotations

import gathered
import pytest
from launch import launched, results


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[float, ...]]]:
    return results(launched(2, gathered.everything, tmp_path_factory.mktemp("saved")))


@pytest.mark.parametrize("case", ["masked", "latent", "finalized", "sparsified", "resumed"])
def test_an_evaluation_sees_the_weights_that_are_there(
    found: list[dict[str, tuple[float, ...]]], case: str
) -> None:
    for rank in found:
        assert max(rank[case]) < 1e-5, rank[case]
