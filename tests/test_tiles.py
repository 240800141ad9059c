"""Tiles hold what was packed: against a loop over groups, and back to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nmstep import NMPattern, nm_mask
from nmstep.tiles import LANES, Tiling, misplaced, pack_rows, unpack_rows

PATTERNS = ["1:2", "2:4", "1:4", "3:4", "1:8", "2:8", "4:8", "3:5", "1:16", "2:16", "1:32", "7:64"]


def sparse(rows: int, columns: int, pattern: NMPattern, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * nm_mask(weight, pattern, pad=True)


def listed(weight: Tensor, pattern: NMPattern) -> list[list[list[tuple[int, float]]]]:
    """Returns (place, value) of what is not zero, for each group of each row."""
    return [
        [
            [(place, value) for place, value in enumerate(row[start : start + pattern.m]) if value != 0]
            for start in range(0, weight.shape[1], pattern.m)
        ]
        for row in weight.tolist()
    ]


def unpacked_by_hand(values: Tensor, indices: Tensor, tiling: Tiling) -> list[list[list[tuple[int, float]]]]:
    n, bits, fields = tiling.pattern.n, tiling.bits, tiling.fields
    rows = []
    for row in range(tiling.rows):
        tile, lane = divmod(row, LANES)
        groups: list[list[tuple[int, float]]] = []
        for i in range(tiling.kept):
            word = int(indices[tile, i // fields, lane]) & 0xFFFFFFFF
            place = word >> (bits * (i % fields)) & ((1 << bits) - 1)
            value = float(values[tile, i, lane])
            if i % n == 0:
                groups.append([])
            groups[-1] += [(place, value)] if value != 0 else []
        rows.append(groups)
    return rows


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("rows", [1, 16, 35])
def test_tiles_hold_each_value_with_its_place(text: str, rows: int) -> None:
    pattern = NMPattern.parse(text)
    weight = sparse(rows, 3 * pattern.m, pattern)
    tiling = Tiling(rows, 3 * pattern.m, pattern)
    values, indices = pack_rows(weight, pattern)
    assert values.shape == tiling.values_shape
    assert indices.shape == tiling.indices_shape
    assert unpacked_by_hand(values, indices, tiling) == listed(weight, pattern)
    assert torch.equal(unpack_rows(values, indices, tiling), weight)
    assert misplaced(indices, tiling) is None


def test_many_tiles_are_packed_part_by_part() -> None:
    pattern = NMPattern(2, 4)
    weight = sparse(16 * 70 + 3, 24, pattern)
    values, indices = pack_rows(weight, pattern)
    assert torch.equal(unpack_rows(values, indices, Tiling(*weight.shape, pattern)), weight)


@pytest.mark.parametrize("text", ["2:4", "3:5", "1:16"])
def test_a_short_group_comes_back(text: str) -> None:
    pattern = NMPattern.parse(text)
    weight = sparse(20, 2 * pattern.m + 1, pattern)
    assert torch.equal(unpack_rows(*pack_rows(weight, pattern), Tiling(*weight.shape, pattern)), weight)


def test_groups_with_fewer_values_than_n_come_back() -> None:
    weight = torch.tensor([[0.0, 0, 0, 0, 5, 0, 0, 0], [0, 0, 0, 7, 1, 0, 0, 2]])
    values, indices = pack_rows(weight, NMPattern(2, 4))
    assert torch.equal(unpack_rows(values, indices, Tiling(2, 8, NMPattern(2, 4))), weight)


def test_special_values_keep_their_bits() -> None:
    weight = torch.zeros(2, 8)
    weight[0, 1], weight[0, 5], weight[1, 7] = float("nan"), float("-inf"), 1e-42
    back = unpack_rows(*pack_rows(weight, NMPattern(1, 4)), Tiling(2, 8, NMPattern(1, 4)))
    assert torch.equal(back.view(torch.int32), weight.view(torch.int32))


def test_values_can_be_narrower_than_the_weight() -> None:
    weight = sparse(16, 32, NMPattern(1, 4))
    values, indices = pack_rows(weight, NMPattern(1, 4), dtype=torch.bfloat16)
    assert torch.equal(unpack_rows(values, indices, Tiling(16, 32, NMPattern(1, 4))), weight.bfloat16())


def test_a_transposed_weight_is_packed_along_its_rows() -> None:
    weight = sparse(24, 16, NMPattern(2, 4))
    values, indices = pack_rows(weight.T.contiguous().T, NMPattern(2, 4))
    assert torch.equal(values, pack_rows(weight, NMPattern(2, 4))[0])
    assert torch.equal(indices, pack_rows(weight, NMPattern(2, 4))[1])


def test_a_full_group_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 2 values"):
        pack_rows(torch.ones(1, 4), NMPattern(2, 4))


@pytest.mark.parametrize(
    ("text", "lane", "word"), [("3:5", 4, 0b110_001_000), ("2:4", 9, 0b01_10), ("2:4", 0, 0b11_11)]
)
def test_misplaced_names_row_and_group(text: str, lane: int, word: int) -> None:
    pattern = NMPattern.parse(text)
    tiling = Tiling(40, 2 * pattern.m, pattern)
    _, indices = pack_rows(sparse(40, 2 * pattern.m, pattern), pattern)
    low = (1 << tiling.bits * pattern.n) - 1
    indices[1, 0, lane] = (int(indices[1, 0, lane]) & ~low) | word
    assert misplaced(indices, tiling) == (16 + lane, 0)
