"""Models of well-known sizes with random weights: how fast a product is does not depend on its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nmstep.bench.inputs import Given, given_to
from nmstep.bench.subject import Subject, Use
from nmstep.deploy import pack
from nmstep.masks import nm_mask
from nmstep.packages import require
from nmstep.patterns import NMPattern
from nmstep.plan import plan as make_plan
from nmstep.sparsity_plan import SparsityPlan
from nmstep.tasks.models import ResNet18

__all__ = ["SIZES", "Size", "masked", "sized_subject"]


@dataclass(frozen=True)
class Size:
    """A model of a size.

    Args:
        build: returns it with random weights.
        include: globs of what becomes sparse.
    """

    build: Callable[[], nn.Module]
    include: tuple[str, ...]


def sized_subject(
    name: str, pattern: str, *, tokens: int | None = None, dtype: torch.dtype | None = None
) -> Subject:
    """Returns a model of a size, its weights masked by magnitude.

    Args:
        name: in :data:`SIZES`.
        pattern: N kept of M, of every sparse layer.
        tokens: as :func:`~nmstep.bench.inputs.given_to` takes them.
        dtype: to hold kept weights in.

    Raises:
        ValueError: the pattern is none.
        ImportError: transformers is needed and not installed.
    """
    NMPattern.parse(pattern)
    size = SIZES[name]
    dense = size.build().eval().requires_grad_(False)
    plan = masked(dense, pattern, size.include)
    use, what, decoded = _thumbnails() if isinstance(dense, ResNet18) else given_to(dense, tokens)
    packed = pack(dense, plan=plan, dtype=dtype)
    return Subject(name=name, dense=dense, packed=packed, use=use, what=what, decoded=decoded)


def masked(model: nn.Module, pattern: str, include: Sequence[str] | None) -> SparsityPlan:
    """Cuts a model's weights by magnitude, and returns the plan that says which."""
    plan = make_plan(model, pattern, include=include)
    with torch.no_grad():
        for entry, weight in zip(plan.sparse, plan.resolve(model).values(), strict=True):
            weight.mul_(nm_mask(weight, pattern, dim=entry.dim or 0))
    return plan


def _thumbnails() -> Given:
    return lambda count: Use(positional=(torch.randn(count, 3, 32, 32),)), "an image of 32 x 32", None


def _bert() -> nn.Module:
    transformers = require("transformers", "a model of BERT's size")
    model: nn.Module = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    return model


def _gpt2() -> nn.Module:
    transformers = require("transformers", "a model of GPT-2's size")
    config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


SIZES: dict[str, Size] = {
    "bert-base": Size(_bert, ("encoder.*",)),
    "gpt2": Size(_gpt2, ("transformer.h.*",)),
    "resnet18": Size(lambda: ResNet18(classes=10), ("stages.*",)),
}
