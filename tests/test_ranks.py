"""One process alone: no group to agree with, and wrappers looked through."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

import nmstep
from nmstep.ranks import Ranks
from nmstep.shards import copies, is_sharded, local
from tiny import net


def test_a_group_needs_torch_distributed() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"process_group='some': torch\.distributed is not initialised"):
        nmstep.sparsify(model, nmstep.AdamW(model.parameters()), nmstep.STE("2:4"), process_group="some")


def test_alone_an_error_is_the_error() -> None:
    def fails() -> int:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        Ranks("world").worst(fails)


def test_alone_nothing_is_copied() -> None:
    values = torch.ones(3)
    ranks = Ranks(None)
    assert ranks.sum(values) is values
    assert ranks.least(values) is values


def test_an_ordinary_tensor_is_no_part() -> None:
    p = nn.Parameter(torch.ones(3))
    assert not is_sharded(p)
    assert local(p) is p
    assert copies(p, 4) == 4.0


def test_wrappers_add_nothing_to_names() -> None:
    model = net()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert nmstep.plan(wrapped, "2:4") == nmstep.plan(model, "2:4")


def test_a_word_that_does_not_come_through_says_whose_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    ranks = Ranks(None)
    ranks._devices = ["cpu"]
    monkeypatch.setattr(dist, "all_reduce", broken)
    monkeypatch.setattr(dist, "all_gather_object", broken)
    ranks.size = 2
    for say in (lambda: ranks.sum(torch.ones(1)), lambda: ranks.agree(dict)):
        with pytest.raises(RuntimeError, match="closed by peer") as raised:
            say()
        assert "every rank calls nmstep.sparsify" in raised.value.__notes__[0]
