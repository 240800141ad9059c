"""Whole packed models against dense ones, on the CPU, and how large their files are.

    python benchmarks/packed_models.py [--rounds 15] [--threads 1] [--json FILE]

Random weights of the sizes of BERT-Base, GPT-2 and ResNet-18: how fast a product is does not depend on its values.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bars import DECODER, ENCODER, FILE, SPARSE_PATTERNS
from packed_layers import speed_up
from record import Part, Row, alone
from settings import Settings
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import nmstep
from nmstep import NMPattern, SparsityPlan
from nmstep.bench.sizes import masked
from nmstep.tasks.models import ResNet18

__all__ = ["PART"]

TOKENS = 32  # that the decoder makes, one at a time


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows, model by model and pattern by pattern, each with the size of its file."""
    for name, (build, use, bars, include) in MODELS.items():
        for place, pattern in enumerate(SPARSE_PATTERNS):
            torch.manual_seed(0)
            dense = build(settings).eval().requires_grad_(False)
            plan = masked(dense, pattern, include)
            packed = nmstep.pack(dense, plan=plan)
            section = f"{name}, {pattern}"
            run = use(settings)
            with torch.inference_mode():
                yield _against(packed, dense, run, settings, section, "fp32", bars[place] if bars else None)
                narrow = copy.deepcopy(dense).to(torch.bfloat16)  # what is dense is shared
                yield _against(packed, narrow, run, settings, section, "fp32, against dense bf16", None)
                packed = nmstep.pack(narrow, plan=plan)
                yield _against(packed, narrow, run, settings, section, "bf16, against dense bf16", None)
                yield _file(packed, plan, section)


def _against(
    packed: nn.Module,
    dense: nn.Module,
    run: Callable[[nn.Module], object],
    settings: Settings,
    section: str,
    name: str,
    bar: float | None,
) -> Row:
    return speed_up(lambda: run(packed), lambda: run(dense), settings, section=section, name=name, bar=bar)


def _file(packed: nn.Module, plan: SparsityPlan, section: str) -> Row:
    """Returns the bytes of a packed file over those of its values, index bits and what is dense."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        nmstep.save_packed(packed, path)
        size = path.stat().st_size
    least, seen = 0.0, set[int]()
    sparse = {entry.name: entry for entry in plan.sparse}
    for name, tensor in nmstep.unpack(packed).state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        entry = sparse.get(name)
        pattern = NMPattern(1, 1) if entry is None or entry.pattern is None else entry.pattern
        bits = 8 * tensor.itemsize * pattern.n + (0 if pattern.is_dense else pattern.index_bits())
        least += tensor.numel() / pattern.m * bits / 8
    ratio = size / least
    return Row(
        section=section, name=f"file, bf16: {size / 1e6:.1f} MB", value=ratio, low=ratio, high=ratio, bar=FILE
    )


def _bert(settings: Settings) -> nn.Module:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    sizes: dict[str, Any] = settings.pick({}, {**small, "vocab_size": 500})
    model: nn.Module = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    return model


def _gpt2(settings: Settings, *, tied: bool = True) -> nn.Module:
    sizes: dict[str, Any] = settings.pick({}, {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 500})
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied)
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def _resnet(settings: Settings) -> nn.Module:
    del settings
    return ResNet18(classes=10)


def _encode(settings: Settings) -> Callable[[nn.Module], object]:
    tokens = torch.randint(500, (1, settings.pick(128, 16)))
    return lambda model: model(input_ids=tokens)


def _decode(settings: Settings) -> Callable[[Any], object]:
    tokens, count = torch.randint(500, (1, 8)), settings.pick(TOKENS, 4)
    chosen = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    return lambda model: model.generate(tokens, **chosen)


def _classify(settings: Settings) -> Callable[[nn.Module], object]:
    del settings
    images = torch.randn(1, 3, 32, 32)
    return lambda model: model(images.to(next(model.parameters()).dtype))


Model = tuple[
    Callable[[Settings], nn.Module],
    Callable[[Settings], Callable[[Any], object]],
    Sequence[float] | None,
    Sequence[str] | None,
]
MODELS: dict[str, Model] = {
    "BERT-Base encoder, 128 tokens": (_bert, _encode, ENCODER, ("encoder.*",)),
    f"GPT-2, {TOKENS} tokens one by one": (_gpt2, _decode, DECODER, ("transformer.h.*",)),
    # A third of what a token reads is the output matrix, which is dense where it is the embedding too.
    "GPT-2, output matrix sparse too": (
        partial(_gpt2, tied=False),
        _decode,
        DECODER,
        ("transformer.h.*", "lm_head"),
    ),
    "ResNet-18, one 32 × 32 image": (_resnet, _classify, None, ("stages.*",)),
}
PART = Part(
    name="packed_models",
    title="A packed model: times as fast as the dense one",
    measure=measure,
    unit="times",
)

if __name__ == "__main__":
    alone(PART, __doc__)
