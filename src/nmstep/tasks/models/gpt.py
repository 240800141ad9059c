"""A small GPT over bytes."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Projection = Literal["linear", "conv1d"]


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2 checkpoints in transformers store theirs.

    N:M groups run along the input features, so along dimension 0 of this weight.

    Args:
        nf: output features.
        nx: input features.
    """

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.nx = nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x @ weight + bias, (..., nf) for x of (..., nx)."""
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)

    def extra_repr(self) -> str:
        """Returns the sizes for `repr`."""
        return f"nf={self.nf}, nx={self.nx}"


def _projection(kind: Projection, inputs: int, outputs: int) -> nn.Module:
    return Conv1D(outputs, inputs) if kind == "conv1d" else nn.Linear(inputs, outputs)


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values come from one projection.

    Args:
        width: features of the residual stream, a multiple of `heads`.
        heads: attention heads.
        projection: the kind of linear layer.
    """

    def __init__(self, width: int, heads: int, projection: Projection) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _projection(projection, width, 3 * width)
        self.out = _projection(projection, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, length, width) for x of the same shape; place t sees places 0 to t."""
        batch, length, width = x.shape
        by_head = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = by_head.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return joined


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a GELU perceptron four times as wide."""

    def __init__(self, width: int, heads: int, projection: Projection) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, projection)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = _projection(projection, width, 4 * width)
        self.down = _projection(projection, 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, length, width) for x of the same shape."""
        x = x + self.attention(self.attention_norm(x))
        hidden = F.gelu(self.up(self.mlp_norm(x)))
        result: Tensor = x + self.down(hidden)
        return result


class GPT(nn.Module):
    """A decoder-only transformer with learned positions and a final norm.

    Weights start normal with deviation 0.02; the two projections of a block that write to the residual stream
    with 0.02 / sqrt(2 * layers); biases at 0.

    Args:
        vocabulary: number of tokens; 256 for bytes.
        layers: transformer blocks.
        width: features of the residual stream, a multiple of `heads`.
        heads: attention heads.
        context: the longest sequence, in tokens.
        projection: "linear", weights (out, in), or "conv1d", weights (in, out).
        tied: True to use the token embedding as the output layer too.

    Raises:
        ValueError: if a size is below 1, `width` is no multiple of `heads`, or `projection` is unknown.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 256,
        layers: int = 2,
        width: int = 128,
        heads: int = 4,
        context: int = 64,
        projection: Projection = "linear",
        tied: bool = False,
    ) -> None:
        super().__init__()
        sizes = {
            "vocabulary": vocabulary,
            "layers": layers,
            "width": width,
            "heads": heads,
            "context": context,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"a GPT cannot have {name}={size}: give at least 1")
        if width % heads:
            raise ValueError(f"width={width} cannot be split over heads={heads}: make it a multiple of heads")
        if projection not in ("linear", "conv1d"):
            raise ValueError(f"unknown projection {projection!r}: choose 'linear' or 'conv1d'")
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, projection) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(functools.partial(_initialise, residual_std=0.02 / math.sqrt(2 * layers)))
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits, float (batch, length, vocabulary).

        Args:
            tokens: int64 (batch, length), length at most `context`.

        Raises:
            ValueError: if the sequence is longer than `context`.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the model's context={self.context}"
            )
        x = self.tokens(tokens) + self.positions.weight[:length]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def _initialise(module: nn.Module, *, residual_std: float) -> None:
    """Draws one module's own weights; a parent is visited after its children and redraws what it must."""
    if isinstance(module, nn.Linear | Conv1D):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, Block):
        for projection in (module.attention.out, module.down):
            assert isinstance(projection.weight, Tensor)
            nn.init.normal_(projection.weight, std=residual_std)
