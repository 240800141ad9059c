"""Verification with a pattern alone: which tensors must comply, along which dimension; and the table."""

import pytest
import torch

from nmstep.verify import NotSparseError, verify

SPARSE, FULL = torch.tensor([[0.0, 1.0, 2.0, 0.0]]).repeat(2, 1), torch.ones(2, 4)


def test_candidates_are_told_by_name_and_shape() -> None:
    state = {
        "wte.weight": FULL,
        "model.embed_tokens.weight": FULL,
        "patch_embed.proj.weight": SPARSE,
        "layer_norm.weight": FULL,
        "ln_1.weight": torch.ones(4),
        "fc.weight": SPARSE,
        "fc.bias": torch.ones(2),
        "attention.in_proj_weight": SPARSE,
        "rotary.table": FULL,
        "steps": torch.ones(2, 4, dtype=torch.int64),
        "transposed.weight": SPARSE.t().contiguous(),
    }
    report = verify(state, "2:4")
    assert report.ok
    assert {t.name: t.reason for t in report.tensors} == {
        "wte.weight": "embedding, by its name",
        "model.embed_tokens.weight": "embedding, by its name",
        "patch_embed.proj.weight": "along dimension 1",
        "layer_norm.weight": "norm, by its name",
        "ln_1.weight": "fewer than two dimensions",
        "fc.weight": "along dimension 1",
        "fc.bias": "fewer than two dimensions",
        "attention.in_proj_weight": "along dimension 1",
        "rotary.table": "not named as a weight",
        "transposed.weight": "along dimension 0 (right for a transformers Conv1D only; "
        "the layer's kind is not known here)",
    }


def test_a_dense_candidate_must_be_excluded_by_name() -> None:
    state = {"fc.weight": SPARSE, "head.weight": FULL, "odd.weight": torch.zeros(3, 3)}
    report = verify(state, "2:4")
    with pytest.raises(NotSparseError) as caught:
        report.raise_if_failed()
    assert "exclude=['head.weight']" in str(caught.value)
    assert "dimension 1 has 3 elements, not a multiple of 4; if it is meant to be dense" in str(caught.value)
    assert "first [0, 0:4] = (1, 1, 1, 1) with 4 non-zeros" in str(caught.value)
    assert verify(state, "2:4", exclude=["head", "odd.weight"]).ok
    assert verify(state, "2:4", include=["fc"]).ok


def test_the_better_dimension_is_reported() -> None:
    weight = torch.zeros(8, 4)
    weight[0:2] = 1.0  # 2:4 along dimension 0; full groups along dimension 1
    assert verify({"c.weight": weight}, "2:4").checked[0].dim == 0
    weight[6, 1] = weight[5, 1] = weight[4, 1] = 5.0
    (tensor,) = verify({"c.weight": weight}, "2:4").checked
    assert (tensor.dim, str(tensor.first)) == (0, "[4:8, 1] = (5, 5, 5, 0) with 3 non-zeros")


def test_a_head_tied_to_an_embedding_may_be_dense() -> None:
    table = torch.ones(4, 8)
    report = verify({"wte.weight": table, "lm_head.weight": table, "fc.weight": SPARSE}, "2:4")
    assert report.ok
    assert {t.name: t.reason for t in report.tensors}["lm_head.weight"] == "tied to an embedding"
    assert not verify({"wte.weight": table, "lm_head.weight": table.clone(), "fc.weight": SPARSE}, "2:4").ok


def test_nothing_to_go_by() -> None:
    with pytest.raises(ValueError, match="the state dict does not say which pattern it has: give one"):
        verify({"fc.weight": SPARSE})
    with pytest.raises(ValueError, match="no tensor is expected to be sparse"):
        verify({"fc.bias": torch.ones(4)}, "2:4")
    with pytest.raises(ValueError, match=r"holds no tensors by name \(found 'epoch'\)"):
        verify({"epoch": 3}, "2:4")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="holds no tensors by name"):
        verify({}, "2:4")
    with pytest.raises(ValueError, match="N is the number KEPT"):
        verify({"fc.weight": SPARSE}, "4:2")


def test_the_table_is_complete() -> None:
    text = str(verify({"fc.weight": SPARSE, "head.weight": torch.ones(2000, 4)}, "2:4", exclude=[]))
    assert text.splitlines() == [
        "tensor       shape   pattern  dim  groups  comply  status    why",
        "fc.weight    2x4     2:4      1         2  100.0%  ok        along dimension 1",
        "head.weight  2000x4  2:4      1     2,000    0.0%  violated  2,000 of 2,000 groups hold more than 2 "
        "non-zeros; first [0, 0:4] = (1, 1, 1, 1) with 4 non-zeros; if it is meant to be dense, say "
        "exclude=['head.weight']",
        "the state dict is not N:M: 1 of 2 tensors failed",
    ]


def test_a_share_is_never_rounded_up_to_all() -> None:
    weight = torch.zeros(5001, 4)  # no whole groups along dimension 0
    weight[7] = 1.0
    assert " 99.9% " in str(verify({"fc.weight": weight}, "2:4", include=["fc"]))
