import dataclasses

import pytest
import torch

from nmstep.experiments import RecipeOptions, RunConfig


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equal results need equal threads, and the machine may have other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small():
    """Half a second of STEP: switch after step 31, checkpoints at 10, 20, ..., evaluations at 15, 30, 45."""
    return RunConfig(
        recipe="step",
        pattern="1:16",
        exclude=("conv1",),
        steps=60,
        batch_size=16,
        eval_every=15,
        checkpoint_every=10,
        threads=1,
        options=RecipeOptions(threshold=1e-30, window=8, eps_root=1e-6),
    )


@pytest.fixture(scope="session")
def tiny(small):
    return dataclasses.replace(small, steps=6, eval_every=3, checkpoint_every=2)
