"""The frozen variance held in half a word: what is stored, what it changes, and that it survives a file."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import nmstep
from nmstep import STEP, AdamW, SwitchAt, sparsify
from tiny import net, steps


def trained(
    count: int, *, fused: bool | None, dtype: torch.dtype | None = torch.bfloat16
) -> tuple[torch.nn.Module, AdamW, nmstep.Sparsifier]:
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=fused)
    recipe = STEP("2:4", switch=SwitchAt(10), preconditioner_dtype=dtype)
    sparsifier = sparsify(model, optimizer, recipe)
    steps(model, optimizer, count)
    return model, optimizer, sparsifier


def seconds(optimizer: AdamW) -> list[torch.Tensor]:
    return [state["exp_avg_sq"] for state in optimizer.state.values()]


@pytest.mark.parametrize("fused", [None, False])
def test_it_is_held_in_half_a_word_from_the_switch_to_the_end(fused: bool | None) -> None:
    for count, dtype in ((9, torch.float32), (10, torch.bfloat16), (20, torch.bfloat16)):
        assert {v.dtype for v in seconds(trained(count, fused=fused)[1])} == {dtype}
    model, optimizer, sparsifier = trained(20, fused=fused)
    sparsifier.finalize()
    assert {v.dtype for v in seconds(optimizer)} == {torch.float32}
    steps(model, optimizer, 2)  # Adam goes on


@pytest.mark.parametrize("fused", [None, False])
def test_it_is_the_frozen_variance_rounded(fused: bool | None) -> None:
    narrow = seconds(trained(10, fused=fused)[1])
    wide = seconds(trained(10, fused=fused, dtype=None)[1])
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(narrow, wide, strict=True))


def test_kernels_and_plain_torch_agree() -> None:
    ours, plain = trained(30, fused=None)[0], trained(30, fused=False)[0]
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p == 0, q == 0)
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("load_first", [False, True])
def test_it_survives_a_file(load_first: bool) -> None:
    whole = trained(30, fused=None)[0]
    first, optimizer, _ = trained(17, fused=None)
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file)
    again = net()
    again.load_state_dict(weights)
    other = AdamW(again.parameters(), lr=1e-3)
    recipe = STEP("2:4", switch=SwitchAt(10), preconditioner_dtype=torch.bfloat16)
    if load_first:
        other.load_state_dict(copy.deepcopy(state))
        sparsify(again, other, recipe)
    else:
        sparsify(again, other, recipe)
        again.load_state_dict(weights)
        other.load_state_dict(state)
    assert {v.dtype for v in seconds(other)} == {torch.bfloat16}
    steps(again, other, 13, first=17)
    for p, q in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"held in torch.bfloat16 or its own dtype, not in torch.float16"):
        AdamW([torch.nn.Parameter(torch.ones(2))]).freeze_variance_(dtype=torch.float16)
    with pytest.raises(
        ValueError, match=r"preconditioner_dtype=torch.float16\): expected torch.bfloat16 or None"
    ):
        STEP("2:4", switch=SwitchAt(1), preconditioner_dtype=torch.float16)
    with pytest.raises(ValueError, match="freezes no variance that preconditioner_dtype could be"):
        STEP("2:4", switch=SwitchAt(1), freeze_variance=False, preconditioner_dtype=torch.bfloat16)
