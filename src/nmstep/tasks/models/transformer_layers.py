"""Layers of the encoder-decoder Transformer, and what its decoder remembers between tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysAndValues = tuple[Tensor, Tensor]


@dataclass
class DecoderState:
    """What the decoder knows before it reads its next tokens.

    Args:
        mask: True at the source's tokens, False at its padding: bool (rows, 1, 1, source length).
        memory: each layer's keys and values of the source, both (rows, heads, source length, width of a head).
        past: each layer's keys and values of the target tokens read so far, likewise; empty before the first.
    """

    mask: Tensor
    memory: list[KeysAndValues]
    past: list[KeysAndValues]

    @property
    def length(self) -> int:
        """Target tokens read so far."""
        return self.past[0][0].shape[2] if self.past else 0

    def select(self, rows: Tensor) -> DecoderState:
        """Returns the state of these rows, in this order; a row may be asked for more than once.

        Args:
            rows: int64 (new rows,).
        """
        return DecoderState(
            mask=self.mask[rows],
            memory=[(key[rows], value[rows]) for key, value in self.memory],
            past=[(key[rows], value[rows]) for key, value in self.past],
        )


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself; queries, keys and values come from one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values, each (rows, heads, length, width of a head)."""
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)
        return _by_head(query, self.heads), _by_head(key, self.heads), _by_head(value, self.heads)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns (rows, length, width) for x of the same shape; every place sees where `mask` is True."""
        joined: Tensor = self.out(_attend(*self.project(x), mask=mask))
        return joined


class CrossAttention(nn.Module):
    """Multi-head attention of the target to the encoded source."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def memory(self, encoded: Tensor) -> KeysAndValues:
        """Returns keys and values of the source, both (rows, heads, source length, width of a head)."""
        key, value = self.key_value(encoded).chunk(2, dim=-1)
        return _by_head(key, self.heads), _by_head(value, self.heads)

    def forward(self, x: Tensor, memory: KeysAndValues, mask: Tensor) -> Tensor:
        """Returns (rows, length, width) for x of the same shape."""
        joined: Tensor = self.out(_attend(_by_head(self.query(x), self.heads), *memory, mask=mask))
        return joined


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


class _Layer(nn.Module):
    """What encoder and decoder layers share: how a part is added to the residual stream."""

    def __init__(self, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def _add(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            added: Tensor = x + self.dropout(part(norm(x))).to(x.dtype)
            return added
        result: Tensor = norm(x + self.dropout(part(x)).to(x.dtype))
        return result


class EncoderLayer(_Layer):
    """Self-attention over the source, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dropout, pre_norm)
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, feed_forward)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns (rows, length, width) for x of the same shape."""
        x = self._add(x, self.attention_norm, lambda normed: self.attention(normed, mask))
        return self._add(x, self.feed_forward_norm, self.feed_forward)


class DecoderLayer(_Layer):
    """Causal self-attention over the target, attention to the source, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dropout, pre_norm)
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, feed_forward)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, state: DecoderState, layer: int) -> Tensor:
        """Returns (rows, length, width) for x of the same shape, and notes x's keys and values in `state`."""
        x = self._add(x, self.attention_norm, lambda normed: self._attend_to_past(normed, state, layer))
        x = self._add(x, self.cross_norm, lambda normed: self.cross(normed, state.memory[layer], state.mask))
        return self._add(x, self.feed_forward_norm, self.feed_forward)

    def _attend_to_past(self, x: Tensor, state: DecoderState, layer: int) -> Tensor:
        query, key, value = self.attention.project(x)
        if layer < len(state.past):
            key = torch.cat([state.past[layer][0], key], dim=2)
            value = torch.cat([state.past[layer][1], value], dim=2)
            state.past[layer] = key, value
        else:
            state.past.append((key, value))
        # One token sees all that came before; several come first, and padding is last: causal is enough.
        mixed = _attend(query, key, value, causal=query.shape[2] > 1)
        joined: Tensor = self.attention.out(mixed)
        return joined


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Returns (rows, heads, length, width of a head) for x of (rows, length, width)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    if query.device.type == "cpu" and query.dtype != torch.float32:
        # Attention in half precision takes several times as long there as in single precision.
        with torch.autocast("cpu", enabled=False):
            return _attend(query.float(), key.float(), value.float(), mask=mask, causal=causal)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)
