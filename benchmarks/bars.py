"""What is to be reached, from the project's guide on performance."""

from __future__ import annotations

import torch

__all__ = ["DENSE_STEP", "ITERATION", "SPARSE_PATTERNS", "SPARSE_STEP", "WORDS", "mask_bar"]

SPARSE_STEP = 1.15  # a step of STEP's sparse phase ÷ torch's fused AdamW
SPARSE_PATTERNS = ("2:4", "1:4", "1:8", "1:16")  # at these patterns
DENSE_STEP = 1.05  # a dense step with all that AutoSwitch reads ÷ torch's fused AdamW
ITERATION = 1.02  # an iteration of a BERT-Base-size model ÷ the same with torch's fused AdamW
WORDS = 1.0  # words for each sparse weight, over dense AdamW


def mask_bar(device: torch.device) -> float:
    """Returns the bar of choosing a mask ÷ copying the tensor."""
    return 1.5 if device.type == "cuda" else 2.0
