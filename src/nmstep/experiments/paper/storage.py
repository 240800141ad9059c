"""Bytes of packed models, from the shapes of the real ones (Table 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import nmstep
from nmstep.packages import require

__all__ = ["storage_rows"]

_PATTERNS = ("2:4", "1:4", "1:16")
_VALUE_BYTES = 2


def storage_rows() -> list[dict[str, Any]]:
    """Returns one row for each model and pattern: sizes in 10⁶ bytes, with 2 bytes a value.

    ``values`` are the kept weights of the sparse layers and the token embedding, which is what the paper
    counts; ``with_index`` adds ``N * ceil(log2 M)`` bits a group, ``with_least_index`` as many bits as the
    choices of N out of M need, and ``everything`` also the other dense parameters to ``with_index``.

    Raises:
        ImportError: ``transformers`` is not installed.

    Source:
        STEP, Table 5.
    Deviation:
        Its caption speaks of indices, its numbers hold none: they are ``values``.
    """
    rows = []
    for name, model, embedding in _models():
        dense = sum(p.numel() for p in model.parameters())
        for pattern in _PATTERNS:
            plan = nmstep.plan(model, pattern, include=_layers(model))
            rows.append({"model": name, "pattern": pattern, **_sizes(plan, dense, embedding)})
    return rows


def _models() -> list[tuple[str, nn.Module, int]]:
    """Returns each model's name, itself without weights, and the numbers in its token embedding."""
    transformers = require("transformers", "the shapes of the models in Table 5")
    with torch.device("meta"):
        bert = transformers.BertModel(transformers.BertConfig())
        gpt2 = transformers.GPT2Model(transformers.GPT2Config())
    tokens = bert.embeddings.word_embeddings.weight.numel(), gpt2.wte.weight.numel()
    return [("BERT-Base", bert, tokens[0]), ("GPT-2", gpt2, tokens[1])]


def _layers(model: nn.Module) -> list[str]:
    return ["encoder.layer.*"] if hasattr(model, "encoder") else ["h.*"]


def _sizes(plan: nmstep.SparsityPlan, dense: int, embedding: int) -> dict[str, float]:
    kept = usual = least = sparse = 0
    for entry in plan.sparse:
        assert entry.pattern is not None
        groups = entry.numel // entry.pattern.m
        kept += entry.kept
        sparse += entry.numel
        usual += groups * entry.pattern.index_bits()
        least += groups * entry.pattern.index_bits(combinatorial=True)
    values = _VALUE_BYTES * (kept + embedding) / 1e6
    rest = _VALUE_BYTES * (dense - sparse - embedding) / 1e6
    with_index = values + usual / 8e6
    sizes = {
        "dense": _VALUE_BYTES * dense / 1e6,
        "values": values,
        "with_index": with_index,
        "with_least_index": values + least / 8e6,
        "everything": with_index + rest,
    }
    return {name: round(size, 1) for name, size in sizes.items()}
