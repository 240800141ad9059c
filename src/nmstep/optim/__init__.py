"""Optimizers that know the sparse step, and the sparse step for any other optimizer."""

from nmstep.optim.adamw import AdamW

__all__ = ["AdamW"]
