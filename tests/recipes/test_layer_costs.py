"""ERK and multiplication counts against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from nmstep import Rule
from nmstep import plan as make_plan
from nmstep.recipes.layer_costs import count_products, erk_sparsities, importance, signed_share


def test_erk_by_hand_without_capping() -> None:
    # raw: 16/64 = 1/4 and 40/256 = 5/32; kept weights 64*s/4 + 256*5s/32 = 56 s = 0.25 * 320 = 80: s = 10/7.
    assert erk_sparsities([(8, 8), (32, 8)], 0.75) == pytest.approx([1 - 10 / 28, 1 - 50 / 224])


def test_erk_counts_the_kernel_dimensions() -> None:
    # raw: (4+2+3+3)/72 = 1/6 and (8+9)/72 = 17/72; s * (12 + 17) = 0.2 * 144.
    scale = 0.2 * 144 / 29
    assert erk_sparsities([(4, 2, 3, 3), (8, 9)], 0.8) == pytest.approx([1 - scale / 6, 1 - scale * 17 / 72])


def test_erk_leaves_layers_dense_that_would_exceed_it() -> None:
    # Ratios 1, 1/2 and 1/8: in proportion the first two would keep 13.8 of 4 and 27.6 of 16.
    shapes = [(2, 2), (4, 4), (16, 16)]
    sparsities = erk_sparsities(shapes, 0.5)
    assert sparsities[:2] == [0.0, 0.0]
    kept = sum((1 - s) * a * b for s, (a, b) in zip(sparsities, shapes, strict=True))
    assert kept == pytest.approx(0.5 * (4 + 16 + 256))


def test_erk_of_target_zero_is_dense() -> None:
    assert erk_sparsities([(4, 4), (8, 8)], 0.0) == pytest.approx([0.0, 0.0])


def test_erk_with_a_floor_and_other_sizes() -> None:
    # The layers count 100 and 300, their ratios are 1/4 and 5/32; 0.25 * 400 = 100 kept. In proportion,
    # 25 s + 46.875 s = 100, s = 1.3913: densities .3478 and .2174; the second may not go below 1/4, so the
    # first keeps 25 of 100.
    assert erk_sparsities([(8, 8), (32, 8)], 0.75, sizes=[100, 300], floor=0.25) == pytest.approx(
        [0.75, 0.75]
    )
    free = erk_sparsities([(8, 8), (32, 8)], 0.75, sizes=[100, 300])
    assert free == pytest.approx([1 - 100 / 71.875 / 4, 1 - 100 / 71.875 * 5 / 32])


def test_importance_never_pushes_away_from_zero() -> None:
    assert importance([1.0, 8.0], [0.125, 1.0], [0.0, 0.5]) == [0.0, pytest.approx(0.5 * 0.5 / 0.875 + 0.5)]


def test_signed_share_of_zeros_is_zeros() -> None:
    assert signed_share([0.0, 0.0]) == [0.0, 0.0]
    assert signed_share([2.0, -8.0]) == [0.25, -1.0]


def test_importance_by_hand() -> None:
    # Current sparsity [0, 7/8]: differences 9/14 and -11/112, over the larger: 1 and -11/72.
    # Products 100 * 1 and 400 / 8 = 50: 1 and 1/2.
    found = importance([100, 400], [1.0, 0.125], [9 / 14, 87 / 112])
    assert found == pytest.approx([1.0, 0.5 * (-11 / 72) + 0.25])


class Conv1D(nn.Module):
    """GPT-2's layer, as transformers spells it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.ones(nx, nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


CASES = [
    (nn.Linear(4, 8), (3, 5, 4), [3 * 5 * 4 * 8]),
    (Conv1D(8, 4), (3, 5, 4), [3 * 5 * 4 * 8]),
    (nn.Conv1d(4, 8, 3), (2, 4, 10), [2 * 8 * (8 * 4 * 3)]),
    (nn.Conv2d(4, 8, 3, stride=2, padding=1), (2, 4, 6, 6), [2 * 3 * 3 * (8 * 4 * 9)]),
    (nn.Conv2d(8, 8, 1, groups=2), (2, 8, 5, 5), [2 * 25 * (8 * 4)]),
    (nn.Conv3d(4, 4, 1), (1, 4, 2, 3, 4), [24 * 16]),
    (nn.ConvTranspose2d(4, 8, 2, stride=2), (2, 4, 3, 3), [2 * 9 * (4 * 8 * 4)]),
]


@pytest.mark.parametrize(("layer", "shape", "expected"), CASES, ids=lambda v: type(v).__name__)
def test_products_of_each_layer_kind(layer: nn.Module, shape: tuple[int, ...], expected: list[int]) -> None:
    entries = make_plan(layer, "2:4").sparse
    assert count_products(layer, entries, lambda: layer(torch.zeros(shape))) == expected
    assert not layer._forward_hooks


def test_products_of_attention_with_and_without_a_memory() -> None:
    attention = nn.MultiheadAttention(8, 2)
    entries = make_plan(attention, "2:4").sparse
    query, memory = torch.zeros(5, 2, 8), torch.zeros(7, 2, 8)
    counts = count_products(attention, entries, lambda: attention(query, key=memory, value=memory))
    assert {e.name: c for e, c in zip(entries, counts, strict=True)} == {
        "in_proj_weight": (10 + 14 + 14) * 8 * 8,
        "out_proj.weight": 10 * 8 * 8,
    }
    split = nn.MultiheadAttention(8, 2, kdim=4, vdim=12)
    entries = make_plan(split, "2:4").sparse
    counts = count_products(split, entries, lambda: split(query, torch.zeros(7, 2, 4), torch.zeros(7, 2, 12)))
    assert {e.name: c for e, c in zip(entries, counts, strict=True)} == {
        "q_proj_weight": 10 * 64,
        "k_proj_weight": 14 * 32,
        "v_proj_weight": 14 * 96,
        "out_proj.weight": 10 * 64,
    }


def test_transformer_layer_counts_its_attention() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    entries = make_plan(layer, "2:4").sparse
    counts = count_products(layer, entries, lambda: layer(torch.zeros(3, 5, 8)))
    assert counts == [15 * e.numel for e in entries]


def test_a_layer_used_twice_or_tied_counts_each_use() -> None:
    layer = nn.Linear(8, 8, bias=False)
    model = nn.Sequential(layer, layer, nn.Linear(8, 8, bias=False))
    model[2].weight = layer.weight
    entries = make_plan(model, "2:4").sparse
    assert count_products(model, entries, lambda: model(torch.zeros(1, 8))) == [3 * 64]


def test_a_bare_parameter_counts_once_for_each_vector() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 4, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w[0]

    model = Experts()
    entries = make_plan(model, "2:4", rules={"w": Rule("2:4", dim=1)}).sparse
    assert count_products(model, entries, lambda: model(torch.zeros(3, 4))) == [3 * 64]
