"""Whole training iterations of a BERT-Base-size and a GPT-2-size model, against torch's fused AdamW.

    python benchmarks/iterations.py [--batch 4] [--length 128] [--rounds 15] [--device cuda] [--json FILE]

Forward pass, backward pass, step and zeroing, on random weights and random tokens. Each optimizer holds a model of
its own; two at a time are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import published
import torch
import torch.nn.functional as F
from bars import ITERATION
from methods import Method, autoswitch, frozen, nmstep_adamw, torch_adamw
from record import Part, Row, alone, row_of
from settings import Settings
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import nmstep
from nmstep.timing import Step

__all__ = ["PART"]

PATTERN = "2:4"
METHODS: dict[str, tuple[Method, bool]] = {  # and whether the bar is meant for it
    "torch, no kind asked for": (torch_adamw(), False),
    "dense, AutoSwitch": (nmstep_adamw(autoswitch, fused=True), True),
    "STEP's sparse phase, 2:4": (nmstep_adamw(frozen), True),
    "SR-STE, 2:4": (nmstep_adamw(nmstep.SRSTE), False),
    "SR-STE, 2:4, as published": (published.sr_ste, False),
}


def bert(settings: Settings) -> nn.Module:
    """Returns BERT-Base with its language-model head."""
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    sizes: dict[str, Any] = settings.pick({}, {**small, "vocab_size": 500})
    model: nn.Module = BertForMaskedLM(BertConfig(**sizes))
    return model


def gpt2(settings: Settings) -> nn.Module:
    """Returns GPT-2 with 124 million weights."""
    sizes: dict[str, Any] = settings.pick({}, {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 500})
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    return model


MODELS: dict[str, tuple[Callable[[Settings], nn.Module], float | None]] = {
    "BERT-Base": (bert, ITERATION),
    "GPT-2": (gpt2, None),
}


def measure(settings: Settings) -> Iterator[Row]:
    """Yields the rows, model by model."""
    for name in MODELS:
        yield from _rows(name, settings)


def _rows(name: str, settings: Settings) -> Iterator[Row]:
    build, bar = MODELS[name]
    batch, length = settings.batch or settings.pick(4, 1), settings.pick(settings.length, 16)
    theirs = _iteration(build(settings), torch_adamw(fused=True), batch, length, settings)
    for method_name, (method, has_bar) in METHODS.items():
        ours = _iteration(build(settings), method, batch, length, settings)
        timing = settings.in_turn(ours, theirs)
        del ours
        section = f"{name}, {batch} × {length} tokens"
        yield row_of(timing, section, method_name, bar=bar if has_bar else None)


def _iteration(model: Any, method: Method, batch: int, length: int, settings: Settings) -> Step:
    torch.manual_seed(0)
    model.to(settings.device).train()
    optimizer = method(model, PATTERN)
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (batch, length), device=settings.device)

    def iteration() -> None:
        logits = model(input_ids=tokens).logits
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return iteration


PART = Part(
    name="iteration", title="A training iteration ÷ the same with torch's fused AdamW", measure=measure
)

if __name__ == "__main__":
    alone(PART, __doc__)
