"""What is to be reached, from the project's guide on performance."""

from __future__ import annotations

import torch

__all__ = [
    "DECODER",
    "DENSE_STEP",
    "ENCODER",
    "FILE",
    "ITERATION",
    "OF_BYTES",
    "PACKED",
    "PACKED_NARROW",
    "SEMI_STRUCTURED",
    "SPARSE_PATTERNS",
]
__all__ += ["SPARSE_STEP", "WORDS", "mask_bar"]

SPARSE_STEP = 1.15  # a step of STEP's sparse phase ÷ torch's fused AdamW
SPARSE_PATTERNS = ("2:4", "1:4", "1:8", "1:16")  # at these patterns
DENSE_STEP = 1.05  # a dense step with all that AutoSwitch reads ÷ torch's fused AdamW
ITERATION = 1.02  # an iteration of a BERT-Base-size model ÷ the same with torch's fused AdamW
WORDS = 1.0  # words for each sparse weight, over dense AdamW

# How many times as fast as torch's dense fp32 layer a packed one is, at these patterns, by rows of the input.
PACKED = {
    1: (1.8, 3.5, 6.5, 12.0),
    16: (1.5, 2.8, 5.0, 8.0),
    64: (1.5, 2.8, 5.0, 8.0),
    256: (1.3, 2.5, 4.5, 7.5),
}
# The same in bfloat16, over torch's dense bfloat16 layer: beyond one row no slower.
PACKED_NARROW = {1: (1.6, 3.0, 5.0, 9.0), 8: (1.0,) * 4, 16: (1.0,) * 4, 64: (1.0,) * 4, 256: (1.0,) * 4}
ENCODER = (1.5, 2.4, 3.7, 5.3)  # a BERT-Base encoder, one sequence of 128 tokens
DECODER = (1.6, 2.8, 4.0, 5.0)  # GPT-2, one token at a time
OF_BYTES = 0.8  # of the ratio of bytes, on a GPU with few rows
SEMI_STRUCTURED = 1.3  # times as fast as dense bfloat16, from 4096 × 4096 on, with as many rows
FILE = 1.02  # bytes of a packed file ÷ values, index bits and what is dense


def mask_bar(device: torch.device) -> float:
    """Returns the bar of choosing a mask ÷ copying the tensor."""
    return 1.5 if device.type == "cuda" else 2.0
