"""Small models of transformers, data for them, and a count of kept weights that owes nothing to nmstep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import nmstep

ENCODER = "bert.encoder."


def tiny_bert() -> Any:
    """Returns a random classifier of two classes, the same weights every time; no dropout."""
    import transformers

    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def examples(count: int = 48) -> list[dict[str, Tensor]]:
    """Returns tokens with a label that depends on them."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 24, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": (row.sum() % 2).long()} for row in tokens]


def recipe(model: nn.Module, *, switch: int = 5, total: int = 12, pattern: str = "2:4") -> Any:
    """Returns STEP on the encoder of :func:`tiny_bert`."""
    plan = nmstep.plan(model, pattern, include=["bert.encoder"])
    return nmstep.STEP(plan, total_steps=total, switch=nmstep.SwitchAt(switch))


def most_kept(weight: Tensor, m: int = 4) -> int:
    """Returns how many weights the fullest group of M consecutive inputs has."""
    return max(sum(x != 0 for x in row[i : i + m]) for row in weight.tolist() for i in range(0, len(row), m))


def encoder_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the matrices of a saved :func:`tiny_bert`'s encoder, as safetensors itself reads them."""
    tensors = load_file(folder / "model.safetensors")
    return {name: t for name, t in tensors.items() if name.startswith(ENCODER) and t.dim() == 2}


def is_sparse(folder: Path, n: int = 2, m: int = 4) -> bool:
    """Returns whether all of the encoder's matrices in a folder have at most N of M."""
    weights = encoder_weights(folder)
    assert len(weights) == 6
    return all(most_kept(weight, m) <= n for weight in weights.values())


def same(a: nn.Module, b: nn.Module) -> bool:
    """Returns whether two models hold the same bits."""
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)
